"""Tokens and pixels of rows with pictures equal those of transformers' own processor."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from gemfleet.train.data.templates.gemma import CHAT_TEMPLATE
from gemfleet.train.errors import UserError
from gemfleet.train.interfaces import StepRows
from support.pictures import QUESTION, chat, picture, prepared, save_pictures, seeing_model, written
from support.tiny_multimodal import save_tiny_processor
from support.tiny_tokenizer import PICTURE
from transformers import AutoTokenizer, Gemma3Processor
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seeing_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Gemma3Processor:
    return save_tiny_processor(tmp_path_factory.mktemp("processor"))


def documents(step: StepRows) -> list[tuple[list[int], list[int]]]:
    """The tokens of each document, and the ids of its pictures."""
    rows, found = step.rows, []
    ends = np.cumsum(rows.document_lengths)
    for start, end in zip(ends - rows.document_lengths, ends, strict=True):
        mine = (rows.picture_starts >= start) & (rows.picture_starts < end)
        found.append((rows.tokens[start:end].tolist(), rows.pictures[mine].tolist()))
    return found


TEXTS = [
    [QUESTION],
    [{"type": "image"}, QUESTION],
    [QUESTION, {"type": "image"}],
    ["  the cat \n", {"type": "image"}, {"type": "image"}, "sat on", {"type": "image"}, " the mat\n\n"],
]


@pytest.mark.parametrize("template", ["gemma", "tokenizer"])
@pytest.mark.parametrize("parts", TEXTS, ids=["none", "before", "behind", "three"])
def test_tokens_and_pixels_are_those_of_the_processor(
    tmp_path: Path, model: Path, processor: Gemma3Processor, parts: list[Any], template: str
) -> None:
    names = iter(save_pictures(tmp_path))
    content = [{"type": "text", "text": p} if isinstance(p, str) else {**p, "path": next(names)} for p in parts]
    whole = [{**part, "path": str(tmp_path / part["path"])} if "path" in part else part for part in content]
    said = [QUESTION, "the mat", content, "hello world"]
    source, report = prepared(written(tmp_path, chat(*said)), model, chat_template=template)
    theirs = processor.apply_chat_template(
        chat(
            *([{"type": "text", "text": one}] if isinstance(one, str) else one for one in [*said[:2], whole, said[3]])
        )["messages"],
        tokenize=True,
        return_dict=True,
        return_tensors="np",
    )
    ((tokens, pictures),) = documents(source.step(0, 0, 0))
    assert tokens == theirs["input_ids"][0].tolist()
    rows = source.step(0, 0, 0).rows
    soft = theirs["token_type_ids"][0] == 1
    assert len(pictures) == sum(isinstance(part, dict) for part in parts) == report.pictures
    assert np.flatnonzero(soft).tolist() == [start + at for start in rows.picture_starts.tolist() for at in range(4)]
    assert not rows.supervised[soft].any()
    if pictures:
        pixels = source.pixels(rows.pictures)
        assert pixels.dtype == np.uint8
        np.testing.assert_allclose((pixels / 255 - 0.5) / 0.5, theirs["pixel_values"], atol=1e-6)


def test_each_way_to_name_a_picture_means_the_same(tmp_path: Path, model: Path) -> None:
    picture(0).save(tmp_path / "cat.png")
    content = (tmp_path / "cat.png").read_bytes()
    text = base64.b64encode(content).decode()
    ways: list[dict[str, Any]] = [
        {"type": "image", "path": "cat.png"},
        {"type": "image", "url": "./cat.png"},
        {"type": "image", "image": str(tmp_path / "cat.png")},
        {"type": "image", "base64": text},
        {"type": "image", "url": f"data:image/png;base64,{text}"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{text}", "detail": "low"}},
        {"type": "input_image", "image_url": "cat.png"},
    ]
    rows = [chat([way, {"type": "text", "text": QUESTION}], "a cat") for way in ways]
    asked = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "a cat"}]
    marked = [{"role": "user", "content": f"<image>{QUESTION}"}, asked[1]]
    numbered = [
        {"role": "user", "content": [{"type": "image", "index": 0}, {"type": "text", "text": QUESTION}]},
        asked[1],
    ]
    rows += [{"messages": one, "images": ["cat.png"]} for one in (asked, marked, numbered)]
    rows += [
        {"messages": asked, "image": {"path": "cat.png"}},
        {"instruction": QUESTION, "output": "a cat", "images": ["cat.png"]},
    ]
    files = [written(tmp_path, *rows[:-1]), tmp_path / "alpaca.jsonl"]
    files[1].write_text(json.dumps(rows[-1]))
    table = datasets.Dataset.from_list(
        [{"messages": asked, "images": [picture(0)]}],
        features=datasets.Features(
            {
                "messages": [{"role": datasets.Value("string"), "content": datasets.Value("string")}],
                "images": [datasets.Image()],
            }
        ),
    )
    table.to_parquet(tmp_path / "table.parquet")
    table.save_to_disk(tmp_path / "saved")
    source, report = prepared(
        files[0], model, train=[str(path) for path in (*files, tmp_path / "table.parquet", tmp_path / "saved")]
    )
    assert report.left_out == {}
    found = documents(source.step(0, 0, 0))
    assert len(found) == len(rows) + 2
    assert len({(tuple(tokens), tuple(pictures)) for tokens, pictures in found}) == 1
    assert source.pictures.tolist() == found[0][1]


@pytest.mark.real
@pytest.mark.parametrize("parts", TEXTS, ids=["none", "before", "behind", "three"])
def test_so_they_are_with_gemmas_own_tokenizer(tmp_path: Path, demo_model: Path, parts: list[Any]) -> None:
    """The 270M's tokenizer with the one token that it lacks, and the sizes of the 4B."""
    tokenizer = AutoTokenizer.from_pretrained(demo_model, **PICTURE)
    tokenizer.save_pretrained(tmp_path / "model")
    config = {"model_type": "gemma3", "vision_config": {"image_size": 896}, "mm_tokens_per_image": 256}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    images = Gemma3ImageProcessorPil(size={"height": 896, "width": 896}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor = Gemma3Processor(images, tokenizer, CHAT_TEMPLATE)
    names = iter(save_pictures(tmp_path))
    content = [{"type": "text", "text": p} if isinstance(p, str) else {**p, "path": next(names)} for p in parts]
    said = [{"role": "system", "content": "the cat "}, *chat(content, "hello world")["messages"]]
    source, _ = prepared(written(tmp_path, {"messages": said}), tmp_path / "model", max_length=2048)
    whole = [{**part, "path": str(tmp_path / part["path"])} if "path" in part else part for part in content]
    answer = [{"type": "text", "text": "hello world"}]
    theirs = processor.apply_chat_template(
        [
            {"role": "system", "content": [{"type": "text", "text": "the cat "}]},
            {"role": "user", "content": whole},
            {"role": "assistant", "content": answer},
        ],
        tokenize=True,
        return_dict=True,
        return_tensors="np",
    )
    ((tokens, pictures),) = documents(source.step(0, 0, 0))
    assert tokens == theirs["input_ids"][0].tolist()
    assert tokens.count(262_144) == 256 * len(pictures)
    if pictures:
        pixels = source.pixels(np.array(pictures))
        np.testing.assert_allclose((pixels / 255 - 0.5) / 0.5, theirs["pixel_values"], atol=1e-6)


def test_a_processor_that_does_something_else_is_refused_where_pictures_come(tmp_path: Path) -> None:
    model = seeing_model(tmp_path / "model")
    file = model / "processor_config.json"
    settings = json.loads(file.read_text())
    settings["image_processor"]["do_normalize"] = False
    file.write_text(json.dumps(settings))
    _, report = prepared(written(tmp_path, chat(QUESTION, "the mat")), model)
    assert report.examples == 1
    (name,) = save_pictures(tmp_path, 1)
    seen = written(tmp_path, chat([{"type": "image", "path": name}, {"type": "text", "text": QUESTION}], "the mat"))
    with pytest.raises(UserError, match="do_normalize false, with which gemfleet prepares no pictures; set it to true"):
        prepared(seen, model)

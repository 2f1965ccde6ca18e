"""The description of a run's data says what the run's own source does with it."""

from __future__ import annotations

import base64
import json
import random
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gemfleet.launcher.data_view.gather import Reading, gather, one_row
from gemfleet.launcher.data_view.page import page
from gemfleet.launcher.data_view.sentences import facts_of
from gemfleet.launcher.data_view.spans import clipped
from gemfleet.launcher.data_view.tokenizer import quick_tokenizer
from gemfleet.launcher.data_view.view import Span
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.data.pictures.format import PictureFormat
from gemfleet.train.errors import UserError
from gemfleet.train.local.source import prepare_local
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.pictures import chat, picture, seeing_model
from support.tiny_tokenizer import tiny_tokenizer

EVIL = "\x1b[31mred\x1b]0;title\x07 \u202eback\x9b2J </script><script>alert(1)</script>"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def train_of(folder: Path, rows: list[Any] | None = None, **data: Any) -> TrainConfig:
    """A configuration with 90 rows of several lengths, or with these."""
    made = [{"prompt": f"what is {i} ", "completion": "the answer " * (1 + i % 13)} for i in range(90)]
    lines = [json.dumps(row) if isinstance(row, dict) else row for row in (made if rows is None else rows)]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    section = {"train": str(folder / "rows.jsonl"), "max_length": 64, **data}
    return TrainConfig.model_validate({"model": "demo", "data": section, "batch": {"global": 8}, "epochs": 2})


@pytest.mark.parametrize(("ranks", "weights"), [(1, None), (3, None), (2, (3, 1))])
def test_it_counts_what_the_runs_source_trains_on(tmp_path: Path, tokenizer: Any, ranks: int, weights: Any) -> None:
    train = train_of(tmp_path)
    if weights:
        (tmp_path / "prose.jsonl").write_text("\n".join(json.dumps({"text": f"the cat {i}"}) for i in range(50)))
        paths = [str(tmp_path / name) for name in ("rows.jsonl", "prose.jsonl")]
        train = train_of(tmp_path, train=[{"path": p, "weight": w} for p, w in zip(paths, weights, strict=True)])
    view = gather(train, Reading(tokenizer), ranks)
    source, report = prepare_local(train.data, 8, train.seed, tokenizer, ranks)
    assert view.epoch is not None
    assert view.lengths is not None
    totals = np.array([(one.rows, one.examples, one.held_out, one.tokens) for one in view.sets]).sum(axis=0).tolist()
    assert totals == [report.rows, report.examples, report.eval_examples, report.tokens]
    assert view.epoch.steps == source.steps_per_epoch
    assert view.epoch.steps_of_run == 2 * source.steps_per_epoch
    steps = [[source.step(0, step, rank).rows for rank in range(ranks)] for step in range(source.steps_per_epoch)]
    packed = sum(rows.row_count for step in steps for rows in step)
    assert view.epoch.tokens == sum(len(rows.tokens) for step in steps for rows in step)
    assert view.epoch.supervised_tokens == sum(rows.supervised_tokens for step in steps for rows in step)
    assert view.epoch.rows == pytest.approx(packed / len(steps))
    assert view.epoch.fill == pytest.approx(view.epoch.tokens / (packed * 64))
    assert sum(bucket.count for bucket in view.lengths.histogram) == report.examples


def test_rows_left_out_are_counted_and_named(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": "a ", "completion": "b"}, "{broken", {"prompt": "alone", "completion": None, "score": 3}]
    view = gather(train_of(tmp_path, rows, eval_fraction=0), Reading(tokenizer), 1)
    found = {reason.reason: (reason.count, reason.first[0].split(" (")[0]) for reason in view.sets[0].left_out}
    assert found == {"not valid JSON": (1, "rows.jsonl line 2"), "no completion": (1, "rows.jsonl line 3")}
    assert view.sets[0].unused == ["score"]
    assert [example.name for example in view.examples] == ["rows.jsonl line 1"]
    facts = facts_of(view)
    assert facts["rows"] == "3 read, 1 used, 2 left out"
    assert "1 step of 8 examples" in facts["epoch"]


def test_nothing_to_train_on_is_said(tmp_path: Path, tokenizer: Any) -> None:
    view = gather(train_of(tmp_path, ["{broken"]), Reading(tokenizer), 1)
    assert (view.epoch, view.lengths, view.examples) == (None, None, [])
    assert facts_of(view)["refused"].startswith("all 1 rows of ")
    whole = gather(train_of(tmp_path, ["{broken", {"text": "a"}], bad_rows="fail"), Reading(tokenizer), 1)
    assert "bad_rows: skip" in whole.refused
    assert "Data: " in page(view)


def test_several_sets_are_told_apart_and_only_so_many_rows_are_read(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "prose.jsonl").write_text("\n".join(json.dumps({"text": f"the cat {i}"}) for i in range(30)))
    sets = [str(tmp_path / "rows.jsonl"), {"path": str(tmp_path / "prose.jsonl"), "limit": 5}]
    train = train_of(tmp_path, train=sets, eval=str(tmp_path / "prose.jsonl"))
    view = gather(train, Reading(tokenizer, limit=10, examples=1), 1)
    assert [(one.name, one.use, one.format, one.rows, one.held_out) for one in view.sets] == [
        ("rows", "train", "prompt_completion", 10, 0),
        ("prose", "train", "text", 5, 0),
        ("prose", "eval", "text", 10, 0),
    ]
    assert [example.name for example in view.examples] == ["rows.jsonl line 1", "prose.jsonl line 1"]
    assert [one.epoch_examples for one in view.sets] == [10, 5, 0]
    assert "only the first 10 rows" in facts_of(view)["rows"]


def test_one_row_shows_its_tokens_and_why_it_is_left_out(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": "what ", "completion": "cat"}, {"prompt": "what ", "completion": "the cat " * 99}, "[]"]
    train = train_of(tmp_path, rows)
    first, long, broken = (one_row(train, Reading(tokenizer), str(number)) for number in (1, 2, 3))
    assert [(span.text, span.supervised) for span in first.spans] == [("<bos>what ", False), ("cat<eos>", True)]
    assert first.left_out == ""
    assert long.left_out.startswith("longer than max_length 64")
    assert "".join(span.text for span in long.spans).count("the cat") == 99
    assert broken.spans == []
    assert broken.left_out.startswith("not an object")
    for wanted, sentence in (("4", "fewer rows"), ("0", "counted from 1"), ("x:1", "the sets: rows")):
        with pytest.raises(UserError, match=sentence):
            one_row(train, Reading(tokenizer), wanted)


def test_control_characters_of_the_data_reach_nobody(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": "a ", "completion": EVIL, f"un{EVIL}": 1}, {"prompt": "a ", "completion": None}]
    view = gather(train_of(tmp_path, rows, eval_fraction=0, max_length=512), Reading(tokenizer), 1)
    texts = [view.model_dump_json(), page(view), *facts_of(view).values()]
    controls = [text for text in texts for mark in ("\x1b", "\x07", "\u202e", "\x9b", "\\u001b") if mark in text]
    assert controls == []
    assert "\\x1b[31mred" in view.examples[0].spans[1].text
    assert "<script>alert" not in page(view)


@given(st.lists(st.tuples(st.text(), st.booleans())), st.integers(1, 40))
def test_a_long_text_loses_its_middle(parts: list[tuple[str, bool]], most: int) -> None:
    spans = [Span(text=text, supervised=flag) for text, flag in parts]
    whole = "".join(span.text for span in spans)
    kept = clipped(spans, most)
    if len(whole) <= most:
        assert kept == spans
        return
    head, tail = "".join(span.text for span in kept).split(f" … {len(whole) - most:,} characters … ")
    assert whole.startswith(head)
    assert whole.endswith(tail)
    assert len(head) + len(tail) == most


def test_the_quick_tokenizer_is_loaded_again_where_its_files_have_changed(tmp_path: Path) -> None:
    tiny_tokenizer(tmp_path)
    first = quick_tokenizer(tmp_path)
    assert quick_tokenizer(tmp_path) is first
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_max_length": 77}))
    assert quick_tokenizer(tmp_path).model_max_length == 77
    config.write_text("{")
    with pytest.raises(UserError, match="cannot be loaded"):
        quick_tokenizer(tmp_path)


@pytest.mark.slow
def test_the_quick_tokenizer_makes_the_same_ids(demo_model: Path) -> None:
    from gemfleet.train.model.base_check import load_tokenizer

    quick, slow = quick_tokenizer(demo_model), load_tokenizer(demo_model)
    assert type(quick) is not type(slow)
    pieces = [
        "a",
        " ",
        "  ",
        "\n",
        "\t",
        "é",
        "日本",
        "<bos>",
        "<start_of_turn>",
        "[multimodal]",
        "\U0001f600",
        "x1",
        "▁",
    ]
    dice = random.Random(1)
    texts = ["".join(dice.choice(pieces) for _ in range(50)) for _ in range(300)]
    for literal in (True, False):
        ids = [one(texts, split_special_tokens=literal)["input_ids"] for one in (quick, slow)]
        assert ids[0] == ids[1]
    assert [quick.decode(one) for one in ids[0]] == [slow.decode(one) for one in ids[0]]
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "chat_template", "all_special_ids"):
        assert getattr(quick, name) == getattr(slow, name), name


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=200))
def test_a_histogram_has_every_example_once_in_ascending_buckets(lengths: list[int]) -> None:
    from gemfleet.launcher.data_view.counts import describe_lengths

    found = describe_lengths(np.array(lengths))
    assert found is not None
    buckets = found.histogram
    assert len(buckets) <= 13
    for bucket in buckets:
        assert bucket.count == sum(bucket.shortest <= length <= bucket.longest for length in lengths)
    assert sum(bucket.count for bucket in buckets) == len(lengths)
    assert [bucket.shortest for bucket in buckets[1:]] == [bucket.longest + 1 for bucket in buckets[:-1]]


def test_examples_show_their_pictures_small_and_one_token_of_each(tmp_path: Path) -> None:
    model = seeing_model(tmp_path / "model")
    picture(0).save(tmp_path / "cat.png")
    seen = chat([{"type": "image", "path": "cat.png"}, {"type": "text", "text": "what?"}], "a cat")
    broken = chat([{"type": "image", "path": "dog.png"}, {"type": "text", "text": "what?"}], "a dog")
    train = train_of(tmp_path, [seen, broken, chat("what?", "no cat")], eval_fraction=0)
    reading = Reading(quick_tokenizer(model), pictures=PictureFormat.of(model))
    view = gather(train, reading, 1)
    first, second = view.examples
    (small,) = first.pictures
    with Image.open(BytesIO(base64.b64decode(small.removeprefix("data:image/jpeg;base64,")))) as image:
        assert max(image.size) == 32  # of the prepared picture, which is smaller than a thumbnail
    text = "".join(span.text for span in first.spans)
    assert "<start_of_image><image_soft_token><end_of_image>" in text
    assert (second.pictures, view.epoch and view.epoch.pictures) == ([], 1)
    assert facts_of(view)["pictures"] == "1 in the examples of an epoch"
    assert small in page(view)
    assert one_row(train, reading, "1") == first
    assert "a picture that is not there ('dog.png'" in one_row(train, reading, "2").left_out

"""The code of a model card runs as it is printed, and what stands beside a model lets it be used."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from gemfleet.launcher.result.tokenizer_files import copy_companions, generation_config
from gemfleet.train.data.templates.gemma import CHAT_TEMPLATE
from PIL import Image
from support.tiny_multimodal import TOKENS, save_tiny_multimodal, save_tiny_processor
from support.tiny_result import tiny_base, tiny_result
from support.tiny_tokenizer import tiny_tokenizer
from transformers import AutoTokenizer

END_OF_TURN = 5  # of the tiny tokenizer


def run_card(output: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Execute the card's code in its folder; returns the names that it made."""
    code = re.findall(r"```python\n(.*?)```", (output / "README.md").read_text(), re.DOTALL)
    assert len(code) == 1
    monkeypatch.chdir(output)
    names: dict[str, Any] = {}
    exec(code[0], names)
    return names


@pytest.mark.parametrize("row_format", ["messages", "prompt_completion", "text", ""])
def test_an_adapter_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row_format: str) -> None:
    """The base lies beside the card, as it says."""
    model = tiny_base(tmp_path / "mine")
    output = tiny_result(tmp_path / "run", model, str(model), row_format)
    (output / "mine").symlink_to(model)
    names = run_card(output, monkeypatch)
    prompt = names["tokenizer"].decode(names["inputs"]["input_ids"][0])
    assert prompt.count("<bos>") == 1
    assert prompt.endswith("<start_of_turn>model\n") == (row_format == "messages")
    assert names["model"].generation_config.eos_token_id == [1, END_OF_TURN]
    assert "base_model:" not in (output / "README.md").read_text()


def test_an_adapter_of_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_base(tmp_path / "hub" / "models--owner--tiny" / "snapshots" / "abc")
    (tmp_path / "hub" / "models--owner--tiny" / "refs").mkdir()
    (tmp_path / "hub" / "models--owner--tiny" / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    output = tiny_result(tmp_path / "run", model, "owner/tiny", "messages")
    for folder in (output, tmp_path / "run" / "checkpoint-1"):  # peft itself would write the cache's folder
        assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "owner/tiny"
    assert "base_model: owner/tiny\n" in (output / "README.md").read_text()
    assert run_card(output, monkeypatch)["base"] == "owner/tiny"


def test_an_adapter_of_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card says how to fetch the base: that command, with the repository here, comes first."""
    model = tiny_base(tmp_path / "origin")
    output = tiny_result(tmp_path / "run", model, "git+https://host/group/m.git#v2", "text")
    assert "# first: git clone --branch v2 https://host/group/m.git base\n" in (output / "README.md").read_text()
    shutil.copytree(model, output / "base")
    assert run_card(output, monkeypatch)["base"] == "./base"


def test_the_card_of_the_demonstration_finds_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_base(tmp_path / "mine")
    monkeypatch.setattr("gemfleet.train.data.demo.demo_model_folder", lambda: model)
    output = tiny_result(tmp_path / "run", model, "demo", "prompt_completion")
    assert run_card(output, monkeypatch)["base"] == model


@pytest.mark.parametrize("multimodal", [False, True])
def test_a_merged_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, multimodal: bool) -> None:
    if multimodal:
        save_tiny_multimodal(tmp_path / "mine")
        tiny_tokenizer(tmp_path / "mine")
    else:
        tiny_base(tmp_path / "mine")
    output = tiny_result(tmp_path / "run", tmp_path / "mine", str(tmp_path / "mine"), "messages", formats=["merged"])
    names = run_card(output, monkeypatch)
    assert names["model"].generation_config.eos_token_id == [1, END_OF_TURN]
    assert (output / "merged" / "chat_template.jinja").read_text() == CHAT_TEMPLATE


@pytest.mark.parametrize("merged", [False, True])
def test_a_result_that_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merged: bool) -> None:
    model = save_tiny_multimodal(tmp_path / "mine")
    save_tiny_processor(model)
    formats = ["merged"] if merged else []
    output = tiny_result(tmp_path / "run", model, str(model), "messages", pictures=3, formats=formats)
    assert "pipeline_tag: image-text-to-text\n" in (output / "README.md").read_text()
    if not merged:
        (output / "mine").symlink_to(model)
    Image.new("RGB", (50, 40), (200, 30, 30)).save(output / "picture.png")
    names = run_card(output, monkeypatch)
    assert names["inputs"]["token_type_ids"].sum() == TOKENS
    assert names["output"].shape[1] > names["inputs"]["input_ids"].shape[1]


@pytest.mark.parametrize("merged", [False, True])
def test_the_pipeline_of_transformers_answers_about_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merged: bool
) -> None:
    """By the published folder, with the base where its adapter_config.json says. Another picture, another answer."""
    from transformers import pipeline

    model = save_tiny_multimodal(tmp_path / "mine")
    save_tiny_processor(model)
    formats = ["merged"] if merged else []
    output = tiny_result(tmp_path / "run", model, str(model), "messages", pictures=3, formats=formats)
    (output / "mine").symlink_to(model)
    monkeypatch.chdir(output)
    asks = pipeline("image-text-to-text", model="merged" if merged else ".", dtype=torch.float32, device="cpu")
    said = []
    for colour in ((200, 30, 30), (20, 220, 90)):
        picture = Image.new("RGB", (50, 40), colour)
        content = [{"type": "image", "image": picture}, {"type": "text", "text": "what is this"}]
        settings = {"max_new_tokens": 8, "do_sample": False, "return_full_text": False}
        (answer,) = asks([{"role": "user", "content": content}], **settings)
        said.append(answer["generated_text"])
    assert said[0] != said[1]


def test_a_merged_multimodal_model_has_its_processor(tmp_path: Path) -> None:
    """What transformers saves of a processor beside the base lies beside the merged model, and is read there."""
    pytest.importorskip("PIL", reason="the image processor needs pillow")
    from transformers import AutoImageProcessor, Gemma3ImageProcessor, Gemma3Processor

    model = save_tiny_multimodal(tmp_path / "mine")
    tokenizer = tiny_tokenizer(model)
    for name in ("image_token", "boi_token", "eoi_token"):
        tokenizer.add_special_tokens({"additional_special_tokens": [f"<{name}>"]}, replace_extra_special_tokens=False)
        setattr(tokenizer, name, f"<{name}>")
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(f"<{name}>"))
    size = {"height": 32, "width": 32}
    Gemma3Processor(Gemma3ImageProcessor(size=size), tokenizer, image_seq_length=4).save_pretrained(model)
    expected = {name for name in ("processor_config.json", "preprocessor_config.json") if (model / name).is_file()}
    assert expected
    output = tiny_result(tmp_path / "run", model, str(model), "messages", formats=["merged"])
    assert {path.name for path in (output / "merged").iterdir()} >= expected
    assert not (output / "processor_config.json").exists()
    assert AutoImageProcessor.from_pretrained(output / "merged").size == AutoImageProcessor.from_pretrained(model).size


def test_the_ends_of_an_answer(tmp_path: Path) -> None:
    model = tiny_base(tmp_path / "mine")
    path = model / "generation_config.json"
    for given, ends in ((1, [1, END_OF_TURN]), ([1, 106], [1, 106, END_OF_TURN]), (None, [1, END_OF_TURN])):
        path.write_text(json.dumps({"eos_token_id": given, "top_k": 64, "_from_model_config": True}))
        kept = {"bos_token_id": 2, "pad_token_id": 0, "top_k": 64}
        assert generation_config(model) == {**kept, "eos_token_id": ends}
    path.unlink()
    assert generation_config(model) == {"bos_token_id": 2, "eos_token_id": [1, END_OF_TURN], "pad_token_id": 0}
    (model / "tokenizer.json").write_text('{"added_tokens": []}')
    config = json.loads((model / "tokenizer_config.json").read_text()) | {"added_tokens_decoder": {}}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    assert generation_config(model)["eos_token_id"] == [1]  # a tokenizer without turns


def test_a_template_that_is_there_stays(tmp_path: Path) -> None:
    model = tiny_base(tmp_path / "mine")
    (model / "chat_template.jinja").write_text("my own")
    (tmp_path / "out").mkdir()
    copy_companions(model, tmp_path / "out", template="gemma")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "my own"


def test_a_template_of_ones_own_and_its_end_are_published(tmp_path: Path) -> None:
    model = tiny_base(tmp_path / "mine")
    own = "{% for m in messages %}{{ m.content }}<unk>{% endfor %}"
    (tmp_path / "out").mkdir()
    copy_companions(model, tmp_path / "out", template=own)
    ids = AutoTokenizer.from_pretrained(tmp_path / "out").apply_chat_template([{"role": "user", "content": "a"}])
    assert ids["input_ids"] == [2, *AutoTokenizer.from_pretrained(model)("a<unk>")["input_ids"]]
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [1, END_OF_TURN, 3]

"""`gemfleet ask --image`: the answer is that of transformers' own classes to the same picture and question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gemfleet.cluster.redaction import printable
from gemfleet.launcher.ask.questions import about, conversation
from gemfleet.launcher.ask.seeing import read_pictures
from gemfleet.launcher.cli import app, main
from gemfleet.train.data.templates.asking import Asking
from gemfleet.train.errors import UserError
from peft import PeftModel
from PIL import Image
from support.pictures import picture, seeing_model
from support.tiny_result import tiny_base, tiny_result
from transformers import AutoProcessor, AutoTokenizer, Gemma3ForConditionalGeneration
from typer.testing import CliRunner

TEXT = "what is the cat"


@pytest.fixture
def result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The published adapter of a base that sees, and two pictures beside it."""
    monkeypatch.setenv("GEMFLEET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as `ask` sets it
    model = seeing_model(tmp_path / "model")
    for number in range(2):
        picture(number).save(tmp_path / f"{number}.png")
    return tiny_result(tmp_path, model, str(model), "messages", pictures=2)


def said(output: Path, *arguments: str) -> dict[str, str]:
    command = ["ask", str(output), TEXT, "--model", str(output.parent / "model"), "--max-new-tokens", "8", "--greedy"]
    found = CliRunner().invoke(app, [*command, *arguments, "--json"], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    answer: dict[str, str] = json.loads(found.stdout)
    return answer


def expected(output: Path, pictures: list[Path], base: bool) -> str:
    """What the original class says, with the adapter or without, by the processor's chat template."""
    model: Any = Gemma3ForConditionalGeneration.from_pretrained(output.parent / "model").eval()
    model = model if base else PeftModel.from_pretrained(model, output).eval()
    processor = AutoProcessor.from_pretrained(output.parent / "model")
    content = [*({"type": "image", "image": Image.open(one)} for one in pictures), {"type": "text", "text": TEXT}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False, pad_token_id=0)[0]
    text: str = processor.decode(tokens[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return printable(text.strip())


def test_answers_are_those_of_the_original_classes(result: Path, tmp_path: Path) -> None:
    both = [tmp_path / "0.png", tmp_path / "1.png"]
    for pictures in (both[:1], both[1:], both):
        options = [part for one in pictures for part in ("--image", str(one))]
        found = said(result, *options, "--base")
        assert found["answer"].strip() == expected(result, pictures, base=False)
        assert found["base_answer"].strip() == expected(result, pictures, base=True)
        assert found["question"] == TEXT
    assert said(result, "--image", str(both[0]))["answer"] != said(result, "--image", str(both[1]))["answer"]


def test_what_cannot_be_shown_is_said_in_a_sentence(
    result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(output: Path, image: Path, *arguments: str) -> str:
        model = str(output.parent / "model")
        monkeypatch.setattr(
            "sys.argv", ["gemfleet", "ask", str(output), TEXT, "--image", str(image), "--model", model, *arguments]
        )
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 2
        return capsys.readouterr().err

    assert "nowhere.png: a picture that is not there" in refused(result, tmp_path / "nowhere.png")
    (tmp_path / "text.png").write_text("no picture")
    assert "a picture that cannot be decoded" in refused(result, tmp_path / "text.png")
    blind = tmp_path / "blind"
    text = tiny_result(blind, tiny_base(blind / "model"), str(blind / "model"), "messages")
    assert "--image is given, but the base" in refused(text, tmp_path / "0.png")
    asking = Asking(AutoTokenizer.from_pretrained(tmp_path / "model"), None)
    with pytest.raises(UserError, match="a picture in a prompt without turns"):
        asking.ids(about(read_pictures([tmp_path / "0.png"]), conversation([TEXT])))

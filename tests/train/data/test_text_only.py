"""Images, sounds and films in the data end a run before it begins, with the row that holds one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gemfleet.launcher.run.check_inputs import check_inputs
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.errors import UserError
from gemfleet.train.local.source import prepare_local
from support.tiny_tokenizer import tiny_tokenizer

PICTURE = {"type": "image", "url": "cat.png"}
ANSWER = {"role": "assistant", "content": "a cat"}
GOOD = {"messages": [{"role": "user", "content": "hi"}, ANSWER]}
PAIR = {"prompt": "what?", "completion": "a cat"}
WITH_IMAGES = [
    (GOOD, {"messages": [{"role": "user", "content": [PICTURE, {"type": "text", "text": "what?"}]}, ANSWER]}),
    (GOOD, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ANSWER]}),
    (GOOD, {**GOOD, "images": ["cat.png"]}),
    (PAIR, {**PAIR, "prompt": [{"role": "user", "content": [PICTURE]}]}),
    (PAIR, {**PAIR, "image": "cat.png"}),
]
WITH_SOUNDS_OR_FILMS = [
    (GOOD, {**GOOD, "audios": ["a.wav"]}, "a sound"),
    (GOOD, {**GOOD, "videos": ["a.mp4"]}, "a film"),
    (PAIR, {**PAIR, "audio": {"path": "a.wav"}}, "a sound"),
    (
        GOOD,
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, ANSWER]},
        "a sound",
    ),
    (GOOD, {"messages": [{"role": "user", "content": [{"type": "video_url"}]}, ANSWER]}, "a film"),
]


def config_of(path: Path, rows: list[dict[str, Any]]) -> TrainConfig:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return TrainConfig.model_validate({"model": "demo", "data": {"train": str(path), "eval_fraction": 0.0}})


@pytest.mark.parametrize(("good", "bad"), WITH_IMAGES)
def test_a_row_with_an_image_is_refused(tmp_path: Path, good: dict[str, Any], bad: dict[str, Any]) -> None:
    config = config_of(tmp_path / "train.jsonl", [good, bad])
    sentence = (
        r"train\.jsonl line 2 of .* holds an image \(in .*\), but the base .*4B, 12B and 27B do\); leave out such rows"
    )
    with pytest.raises(UserError, match=sentence):
        check_inputs(config)
    with pytest.raises(UserError, match=sentence):
        prepare_local(config.data, 1, 0, tiny_tokenizer(tmp_path / "tokenizer"), 1)


@pytest.mark.parametrize(("good", "bad", "kind"), WITH_SOUNDS_OR_FILMS)
def test_so_is_one_with_a_sound_or_a_film(tmp_path: Path, good: dict[str, Any], bad: dict[str, Any], kind: str) -> None:
    config = config_of(tmp_path / "train.jsonl", [good, bad])
    with pytest.raises(UserError, match=rf"line 2 of .* holds {kind} \(in .*\), but"):
        check_inputs(config)


def test_an_empty_column_of_images_is_no_image(tmp_path: Path) -> None:
    config = config_of(tmp_path / "train.jsonl", [{**GOOD, "images": []}, {**GOOD, "images": None}])
    check_inputs(config)
    aside = config.data.model_copy(update={"ignore_columns": ("audios",)})
    (tmp_path / "a.jsonl").write_text(json.dumps({**GOOD, "audios": ["a.wav"]}))
    check_inputs(config.model_copy(update={"data": aside.model_copy(update={"train": str(tmp_path / "a.jsonl")})}))
    _, report = prepare_local(config.data, 1, 0, tiny_tokenizer(tmp_path / "tokenizer"), 1)
    assert report.examples == 2


def test_a_text_column_may_be_called_image(tmp_path: Path) -> None:
    values = {"train": str(tmp_path / "t.jsonl"), "eval_fraction": 0.0, "columns": {"text": "image"}}
    config_of(tmp_path / "t.jsonl", [{"image": "a cat on a mat"}])
    check_inputs(TrainConfig.model_validate({"model": "demo", "data": values}))

"""One process reads the files that `gemfleet train` reads, and takes the `train` section of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from gemfleet.train.config.train_file import load_train
from gemfleet.train.errors import UserError
from support.places import EXAMPLES
from support.platform_requests import REFERENCE

TRAIN = {"model": "demo", "data": {"train": "demo"}, "batch": {"global": 6}}


def write(folder: Path, **sections: Any) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_train(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_read(path: Path) -> None:
    config, left = load_train(path)
    assert config.data.train
    assert left == tuple(key for key in yaml.safe_load(path.read_text()) if key != "train")


def test_other_sections_are_left_alone_whatever_they_hold(tmp_path: Path) -> None:
    sections = {"api": {"enabled": False}, "output": {}, "predict": None, "name": "x", "cluster": {"new": 1}}
    config, left = load_train(write(tmp_path, train=TRAIN, **sections))
    assert config.batch.global_ == 6
    assert set(left) == set(sections)
    assert load_train(write(tmp_path, train=TRAIN))[1] == ()


def test_an_override_of_another_section_is_named_too(tmp_path: Path) -> None:
    assert load_train(write(tmp_path, train=TRAIN), ["cluster.workers=2"])[1] == ("cluster",)


def test_a_key_that_no_file_has_is_an_error(tmp_path: Path) -> None:
    told = refusal(write(tmp_path, train=TRAIN, clutser={"workers": 2}))
    assert told.endswith("run.yaml has one problem:\n  clutser: unknown key; did you mean `cluster`?")
    told = refusal(write(tmp_path, train={**TRAIN, "lora_rank": 8}))
    assert told.endswith("train.lora_rank: unknown key; here it is `train.lora.r`")


def test_paths_beside_the_file_are_found(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}")
    (tmp_path / "shots").mkdir()
    data = {"train": "rows.jsonl", "pictures": {"folders": ["shots", "nowhere"]}}
    config, _ = load_train(write(tmp_path, train={**TRAIN, "data": data}))
    assert config.data.train == str(tmp_path / "rows.jsonl")
    assert config.data.pictures.folders == (str(tmp_path / "shots"), "nowhere")


def test_a_platforms_request_is_to_be_converted(tmp_path: Path) -> None:
    path = tmp_path / "request.json"
    path.write_text(json.dumps(REFERENCE))
    assert refusal(path) == (
        f"{path} is a request of the fine-tuning platform, which `python -m train` does not read; "
        f"make a configuration of it with: gemfleet convert {path} > run.yaml"
    )

"""What cannot work is refused by the commands themselves: exit code 2, and one sentence with field, value, remedy."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from gemfleet.launcher.cli import main as gemfleet
from gemfleet.train.entry import main as train_here

STAGE = {"strategy": "deepspeed", "deepspeed": {"stage": 4}}
INT4 = {"strategy": "deepspeed", "deepspeed": {"stage": 3}, "quantization": "int4"}
BATCH = {"strategy": "deepspeed", "deepspeed": {"config": "zero.json"}, "batch": {"global": 32}}
CASES = {
    "a stage that does not exist": (STAGE, "train.deepspeed.stage: found 4; give one of `1`, `2`, `3`"),
    "int4 under ZeRO-3": (INT4, "train.quantization is int4, but train.strategy deepspeed takes a base that is not"),
    "another batch size": (BATCH, "sets train_batch_size to 64, but train.batch.global is 32; remove it there"),
}


def write(folder: Path, train: dict[str, Any]) -> str:
    (folder / "zero.json").write_text(json.dumps({"train_batch_size": 64}))
    content = {"train": {"model": "demo", "data": {"train": "demo"}, **train}, "cluster": {"address": "local"}}
    (folder / "run.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "run.yaml")


@pytest.mark.parametrize("command", ["gemfleet train", "python -m train"])
@pytest.mark.parametrize("name", CASES)
def test_a_strategy_that_cannot_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    name: str,
) -> None:
    changes, sentence = CASES[name]
    path = write(tmp_path, changes)
    if command == "gemfleet train":
        monkeypatch.setattr(sys, "argv", ["gemfleet", "train", path])
        with pytest.raises(SystemExit) as ended:
            gemfleet()
        code: object = ended.value.code
    else:
        code = train_here([path])
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert lines[0] == f"error: {path} has one problem:"
    assert len(lines) == 2
    assert sentence in lines[1]


def test_more_ranks_than_gpus_of_a_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert train_here([write(tmp_path, {})]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: torchrun --nproc-per-node is 4, but this machine has 2 GPUs; start at most 2")

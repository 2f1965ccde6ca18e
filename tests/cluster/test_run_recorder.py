"""What the head keeps of a step: the record in the registry, its figures in TensorBoard's file."""

from __future__ import annotations

from pathlib import Path

import pytest
from gemfleet.cluster.run_recorder import RunRecorder
from gemfleet.cluster.run_registry import RunRegistry
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

WHO = {"node": "node-1", "address": "127.0.0.1", "pid": 1}


def test_what_each_rank_has_of_its_own_becomes_a_curve_for_each_rank(tmp_path: Path) -> None:
    RunRegistry(tmp_path / "gemfleet.db").create_run("run-1", "run", "", 1)
    recorder = RunRecorder(str(tmp_path), "run-1")
    step = {"kind": "step", "step": 1, "loss": 2.0, "memory_bytes": [10, 20], "utilisation": [0.5, None]}
    recorder.push(0, [{"time": 1.0, **step}], WHO)
    (folder,) = (tmp_path / "runs" / "run-1" / "runs").iterdir()
    board = EventAccumulator(str(folder)).Reload()
    assert {tag: board.Scalars(tag)[0].value for tag in board.Tags()["scalars"]} == pytest.approx(
        {
            "train/loss": 2.0,
            "train/memory_bytes/rank-0": 10,
            "train/memory_bytes/rank-1": 20,
            "train/utilisation/rank-0": 0.5,
        }
    )
    newest = recorder.snapshot()["step"]
    assert (newest["memory_bytes"], newest["utilisation"]) == ([10, 20], [0.5, None])

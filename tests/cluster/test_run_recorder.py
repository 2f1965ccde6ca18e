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


def test_a_batch_that_comes_again_is_kept_once_also_by_a_recorder_that_was_restarted(tmp_path: Path) -> None:
    registry = RunRegistry(tmp_path / "gemfleet.db")
    registry.create_run("run-1", "run", "", 1)
    batch = [{"kind": "log", "line": "a line"}, {"kind": "event", "event": "note", "message": "a note"}]
    RunRecorder(str(tmp_path), "run-1").push(0, batch, WHO, "a-1")
    again = RunRecorder(str(tmp_path), "run-1")
    for mark in ("a-1", "a-2", "a-2"):
        again.push(0, batch, WHO, mark)
    again.push(1, batch, WHO, "a-2")  # of another rank
    logs = tmp_path / "runs" / "run-1" / "logs"
    assert (logs / "rank-0.log").read_text() == "a line\n" * 2
    assert (logs / "rank-1.log").read_text() == "a line\n"
    assert sum(event["kind"] == "note" for event in registry.events("run-1")) == 3

"""What the head keeps of a step: the record in the registry, its figures in TensorBoard's file."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from gemfleet.cluster.registry.run_recorder import RunRecorder
from gemfleet.cluster.registry.run_registry import RunRegistry
from gemfleet.train.step.record import points
from support.fault_table import SEED, tell
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

WHO = {"node": "node-1", "address": "127.0.0.1", "pid": 1}


def test_what_each_rank_has_of_its_own_becomes_a_curve_for_each_rank(tmp_path: Path) -> None:
    RunRegistry(tmp_path / "gemfleet.db").create_run("run-1", "run", "", 1)
    recorder = RunRecorder(str(tmp_path), "run-1", points)
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


def test_a_recorder_goes_on_in_a_registry_that_was_rebuilt(tmp_path: Path) -> None:
    """The new registry knows the run, but not how much of a rank's log is kept: all of it."""
    path = tmp_path / "gemfleet.db"
    RunRegistry(path).create_run("run-1", "run", "", 1)
    recorder = RunRecorder(str(tmp_path), "run-1")
    recorder.push(0, [{"kind": "log", "line": "before"}], WHO, "a-1")
    for file in tmp_path.glob("gemfleet.db*"):
        file.unlink()
    RunRegistry(path).create_run("run-1", "run", "", 1)
    recorder.push(0, [{"kind": "log", "line": "after"}], WHO, "a-2")
    assert (tmp_path / "runs" / "run-1" / "logs" / "rank-0.log").read_text() == "before\nafter\n"


KILLED = """
import sys
from gemfleet.cluster.registry.run_recorder import RunRecorder
recorder, number = RunRecorder(sys.argv[1], "run-1"), int(sys.argv[2])
while True:
    batch = [{"kind": "event", "event": "note", "message": str(number)}, {"kind": "log", "line": f"line {number}"}]
    recorder.push(0, batch, {"node": "n", "address": "a", "pid": 1}, f"mark-{number}")
    number += 1
    print(number, flush=True)
"""


@pytest.mark.parametrize("kills", [6, pytest.param(100, marks=pytest.mark.faults)])
def test_a_killed_recorder_loses_nothing_and_repeats_nothing(tmp_path: Path, kills: int) -> None:
    """The batch whose answer did not come is sent again, as by a rank."""
    registry = RunRegistry(tmp_path / "gemfleet.db")
    registry.create_run("run-1", "run", "", 1)
    next_batch, chance = 0, random.Random(SEED)
    for _ in range(kills):
        command = [sys.executable, "-c", KILLED, str(tmp_path), str(next_batch)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            first = writer.stdout.readline()
            time.sleep(chance.uniform(0.0, 0.05))
            writer.kill()
            told = [first, *writer.stdout.read().splitlines(keepends=True)]
        next_batch = int([line for line in told if line.endswith("\n")][-1])
    who = {"node": "n", "address": "a", "pid": 1}
    last: list[dict[str, str]] = [{"kind": "event", "event": "note", "message": str(next_batch)}]
    last += [{"kind": "log", "line": f"line {next_batch}"}]
    RunRecorder(str(tmp_path), "run-1").push(0, last, who, f"mark-{next_batch}")
    notes = [event["message"] for event in registry.events("run-1") if event["kind"] == "note"]
    lines = (tmp_path / "runs" / "run-1" / "logs" / "rank-0.log").read_text().splitlines()
    assert notes == [str(number) for number in range(next_batch + 1)]
    assert lines == [f"line {number}" for number in range(next_batch + 1)]
    if kills > 10:
        tell(f"recorder killed {kills} times in {next_batch} batches", f"each kept once, seed {SEED}")


def test_a_batch_that_cannot_be_kept_whole_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = RunRegistry(tmp_path / "gemfleet.db")
    registry.create_run("run-1", "run", "", 1)
    recorder = RunRecorder(str(tmp_path), "run-1")
    batch: list[dict[str, Any]] = [
        {"kind": "event", "event": "note", "message": "a"},
        {"kind": "log", "line": "b"},
        {"kind": "step", "step": 1},
    ]
    with monkeypatch.context() as patch:
        patch.setattr(RunRegistry, "_heartbeat", lambda *_: 1 / 0)  # the last thing of the transaction
        with pytest.raises(ZeroDivisionError):
            recorder.push(0, batch, WHO, "m")
    assert [event["kind"] for event in registry.events("run-1")] == ["state"]
    assert registry.metrics("run-1") == []
    recorder.push(0, batch, WHO, "m")
    assert (tmp_path / "runs" / "run-1" / "logs" / "rank-0.log").read_text() == "b\n"

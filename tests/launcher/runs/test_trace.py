"""The trace of a launch: what each process did, in a file that Chrome opens."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gemfleet.cluster.phases import BEGINNING, PHASES, Phases, keep_phases
from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.cluster.registry.run_registry import RunRegistry, RunState
from gemfleet.launcher.runs.trace import refuse_unwritable, write_trace
from gemfleet.train.errors import UserError


def test_it_has_every_process_of_this_launch_and_no_other(tmp_path: Path) -> None:
    registry, file = RunRegistry(tmp_path / "gemfleet.db"), tmp_path / "trace.json"
    registry.create_run("one-1", "one", "{}")
    began = time.time() + 100
    before = {"process": "rank 0", "host": "h", "pid": 1, "phases": [["first step", began - 9, began - 8]]}
    spare = {"process": "rank 0", "host": "h", "pid": 2, "phases": [[BEGINNING, began - 3, began + 2]]}
    for line in (before, spare):
        keep_phases(tmp_path, line)
    registry.transition("one-1", RunState.PREFLIGHT)
    registry.add_event("one-1", EventKind.NOTE, "all is well")
    with (tmp_path / "trace.jsonl").open("a") as lines:
        lines.write('{"process": "rank 1", "pha')  # a full disk cut it off
    driver = {"process": "driver", "host": "h", "pid": 3, "phases": [["checks", began, began + 1.5]]}
    write_trace(registry, "one-1", tmp_path, driver, file)
    events = json.loads(file.read_text())["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert list(names.values()) == ["driver (h, process 3)", "rank 0 (h, process 2)", "run"]
    spans = {(names[e["pid"]][:6], e["name"]): (e["ts"], e["dur"]) for e in events if e["ph"] == "X" and e["pid"] < 2}
    assert spans == {("driver", "checks"): (0, 1_500_000), ("rank 0", BEGINNING): (0, 2_000_000)}
    assert [event["args"]["message"] for event in events if event["ph"] == "i"] == ["all is well"]


def test_a_process_tells_of_its_phases_once_and_one_that_serves_again() -> None:
    once, again = Phases(), Phases()
    for phase in ("loads", "loads", "first step"):
        once.enter(phase)
    told = once.close("rank 0")
    assert told is not None
    assert [name for name, _, _ in told["phases"]] == [BEGINNING, "loads", "first step"]
    ends = [end for _, _, end in told["phases"]]
    assert [begin for _, begin, _ in told["phases"]][1:] == ends[:-1]
    assert once.close("rank 0") is None
    again.enter("tokenises")
    again.taken("data task")
    again.enter("tokenises")
    assert [name for name, _, _ in again.taken("data task")["phases"]] == ["waits", "tokenises"]


def test_a_trace_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    from gemfleet.launcher.run.launch import traced

    registry, said = RunRegistry(tmp_path / "gemfleet.db"), list[str]()
    registry.create_run("one-1", "one", "{}")
    run: Any = SimpleNamespace(registry=registry, id="one-1", folder=tmp_path, note=said.append)
    PHASES.enter("checks")
    with traced(run, tmp_path / "gone" / "trace.json"):
        pass
    assert "could not be written" in said[0]


def test_a_file_that_could_not_be_written_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--trace"):
        refuse_unwritable(tmp_path / "missing" / "trace.json")
    refuse_unwritable(tmp_path / "trace.json")

"""Writes what all processes of a launch did, as a trace that Chrome and Perfetto open."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gemfleet.cluster.phases import TRACE_FILE
from gemfleet.cluster.registry.run_queries import RunQueries
from gemfleet.train.errors import UserError

Line = Mapping[str, Any]
STATES = "run"


def refuse_unwritable(file: Path) -> None:
    """Raise UserError if the trace could not be written, before the run begins."""
    if not file.absolute().parent.is_dir() or file.is_dir():
        raise UserError(f"--trace {file} cannot be written; name a file in a folder that exists")


def write_trace(registry: RunQueries, run_id: str, run_folder: Path, driver: Line, file: Path) -> None:
    """Write the trace of the run's newest launch, whose driver did this; see `Phases.taken`.

    Times are microseconds since the driver began. What was before that is left out: earlier launches, and the past of
    processes that the cluster had in reserve.
    """
    begin, events = driver["phases"][0][1], registry.launch_events(run_id)
    lines = [driver, *(line for line in _lines(run_folder) if line["phases"][-1][2] >= begin)]
    lines.append({"process": STATES, "host": "", "pid": 0, "phases": _states(events)})
    made = [event for number, line in enumerate(lines) for event in _process(number, line, begin)]
    made += [_instant(event, len(lines) - 1, begin) for event in events if event["kind"] != "state"]
    file.write_text(json.dumps({"traceEvents": made, "displayTimeUnit": "ms"}), encoding="utf-8")


def _lines(run_folder: Path) -> list[dict[str, Any]]:
    """Those that are whole: a full disk, or an end in the middle, may have cut one off."""
    path, found = run_folder / TRACE_FILE, []
    for text in path.read_text("utf-8", "replace").splitlines() if path.is_file() else []:
        with suppress(ValueError):
            found.append(json.loads(text))
    return found


def _states(events: Sequence[Line]) -> list[list[Any]]:
    """The run's states as phases. The last one has no end yet, so it has no length."""
    entered = [(event["data"]["state"], event["time"]) for event in events if event["kind"] == "state"]
    ends = [at for _, at in entered[1:]] + [at for _, at in entered[-1:]]
    return [[state, at, end] for (state, at), end in zip(entered, ends, strict=True)]


def _process(number: int, line: Line, begin: float) -> Iterator[dict[str, Any]]:
    host = f" ({line['host']}, process {line['pid']})" if line["pid"] else ""
    yield {"ph": "M", "name": "process_name", "pid": number, "args": {"name": line["process"] + host}}
    yield {"ph": "M", "name": "process_sort_index", "pid": number, "args": {"sort_index": number}}
    for name, first, last in line["phases"]:
        start = max(first, begin)
        if last >= start:
            span = {"ts": round((start - begin) * 1e6), "dur": round((last - start) * 1e6)}
            yield {"ph": "X", "name": name, "pid": number, "tid": 0, **span}


def _instant(event: Line, number: int, begin: float) -> dict[str, Any]:
    at, args = round((event["time"] - begin) * 1e6), {"message": event["message"]}
    return {"ph": "i", "s": "g", "name": event["kind"], "pid": number, "tid": 0, "ts": at, "args": args}

"""Where the time from the command to the first step goes, read from the registry and logs that the run leaves."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

LOG_TIME = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) ")
START = "Python, imports, input checks"
PHASES = {
    "queued": "joining Ray, status API",
    "preflight": "placing ranks",
    "staging": "staging the model",
    "preparing_data": "tokenising and packing",
    "training": "actors, Ray Train, processes of the ranks, process group",
}
LAST = "loading the model, first step"


def breakdown(
    started: float, events: Sequence[dict[str, Any]], ranks_ready: float, first_step: float
) -> dict[str, float]:
    """Seconds of each phase, in order; they add up to `first_step - started`. All moments are seconds since the epoch.

    events: the run's, of which those that enter a state after `started` count, each state once
    """
    entered: dict[str, float] = {}
    for event in events:
        if event["kind"] == "state" and event["time"] >= started:
            entered.setdefault(event["data"]["state"], event["time"])
    known = [(PHASES[state], at) for state, at in entered.items() if state in PHASES and at <= ranks_ready]
    moments = [(START, started), *known, (LAST, ranks_ready)]
    ends = [at for _, at in moments[1:]] + [first_step]
    return {name: end - at for (name, at), end in zip(moments, ends, strict=True)}


def first_line_after(log: Path, started: float) -> float:
    """When the first line later than `started` was written to a rank's log; raises ValueError where there is none."""
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        found = LOG_TIME.match(line)
        if found:
            at = datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S").timestamp() + int(found[2]) / 1000
            if at >= started:
                return at
    raise ValueError(f"{log.name} has no line after the launch")

"""What each process of a launch does until the first step, and how long each part takes; `--trace` shows it."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

TRACE_FILE = "trace.jsonl"  # in a run's folder: a line for each process that told of its phases
BEGINNING = "Python, Ray, imports"


class Phases:
    """The phases of one process, one after another. The first begins with the process itself.

    A process that serves several tasks tells of each anew.
    """

    def __init__(self) -> None:
        self._begun: list[tuple[str, float]] = []
        self._open = True

    def enter(self, phase: str) -> None:
        """End the phase before and begin this one. After `close`, and for the phase that it is in, it does nothing."""
        if not self._begun:
            self._begun = [(BEGINNING, _started())]
        if self._open and self._begun[-1][0] != phase:
            self._begun.append((phase, time.time()))

    @property
    def current(self) -> str | None:
        """The phase that the process is in; None before the first."""
        return self._begun[-1][0] if self._begun else None

    def taken(self, process: str) -> dict[str, Any]:
        """The phases so far, as a line of the trace: [name, begin, end] of each, in seconds since the epoch.

        process: what it is to a person. The next phase begins a new line.
        """
        ends = [at for _, at in self._begun[1:]] + [time.time()]
        spans = [[name, begin, end] for (name, begin), end in zip(self._begun, ends, strict=True)]
        self._begun = [("waits", time.time())]
        return {"process": process, "host": socket.gethostname(), "pid": os.getpid(), "phases": spans}

    def close(self, process: str) -> dict[str, Any] | None:
        """As `taken`, the first time only; then the process tells no more. None where it has told already."""
        if not self._open:
            return None
        self._open = False
        return self.taken(process)


PHASES = Phases()  # of this process


def keep_phases(run_folder: Path, line: Mapping[str, Any]) -> None:
    """Append one process's phases to the trace of a run. A full disk loses them, and nothing else."""
    with suppress(OSError), (run_folder / TRACE_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _started() -> float:
    """When this process began, in seconds since the epoch."""
    import psutil

    return float(psutil.Process().create_time())

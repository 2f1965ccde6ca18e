"""Times the steps of a contender from inside its process and tells the runner about each as one JSON line."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TextIO

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


class StepClock:
    """A step lasts from the end of the one before it, so fetching and collating its batch count as part of it."""

    def __init__(self, events: TextIO) -> None:
        self._events = events
        self._last = 0.0

    def start(self) -> None:
        """Call once the model is ready, just before the first step."""
        _reset_peak_memory()
        self._send({"event": "start"})
        self._last = time.perf_counter()

    def step_done(self, loss: float) -> None:
        """Call after the optimizer's update; `loss` is the mean over the step's supervised tokens before it."""
        now = time.perf_counter()
        self._send({"event": "step", "seconds": now - self._last, "loss": loss})
        self._last = time.perf_counter()

    def finish(self) -> None:
        """Call after the last step."""
        self._send({"event": "finish", "peak_rss_bytes": peak_memory()})

    def _send(self, event: dict[str, object]) -> None:
        self._events.write(json.dumps(event) + "\n")
        self._events.flush()


def peak_memory() -> int:
    """Largest resident size of this process in bytes, since `StepClock.start` where the kernel can reset it (Linux)."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _reset_peak_memory() -> None:
    # Loading a checkpoint can peak higher than training; "5" makes the kernel forget the peak so far.
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return

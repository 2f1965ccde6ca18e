"""Notices that a rank no longer gets on, keeps the stacks of all its threads, and ends it so that Ray restarts the run.

Ray's own health check only asks whether the process answers, which a rank that waits in a collective does. Each rank
watches itself: when one is stopped or stuck, the others wait for it, so they notice even where it cannot.
"""

from __future__ import annotations

import faulthandler
import tempfile
import threading
import time
from collections.abc import Callable, Mapping

LOOKS_PER_LIMIT = 8


class Watchdog:
    """Calls `on_hang(phase, seconds, stacks)` once, from a thread of its own, when a phase exceeds its limit.

    limits: seconds without progress for each phase; a phase that is not named here is not watched
    """

    def __init__(self, limits: Mapping[str, float], on_hang: Callable[[str, float, str], None]) -> None:
        self._limits, self._on_hang = dict(limits), on_hang
        self._at: tuple[str, float] | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def progress(self, phase: str) -> None:
        """Something was finished, and `phase` begins or goes on."""
        self._at = (phase, time.monotonic())

    def close(self) -> None:
        self._closed.set()
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        pause = min([*self._limits.values(), LOOKS_PER_LIMIT * 5.0]) / LOOKS_PER_LIMIT
        while not self._closed.wait(pause):
            if self._at is None:
                continue
            phase, since = self._at
            seconds = time.monotonic() - since
            if seconds > self._limits.get(phase, float("inf")):
                self._on_hang(phase, seconds, stacks())
                return


def stacks() -> str:
    """Where every thread of this process is, the most recent call first."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()

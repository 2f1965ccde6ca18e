"""Notices when a rank makes no progress, and keeps the stacks of its threads. Then the rank ends and Ray restarts all.

Ray's own health check asks whether the process answers, and a rank that waits in a collective does answer. Each rank
watches itself. When one hangs, the others wait for it in a collective, so at least these notice.
"""

from __future__ import annotations

import faulthandler
import tempfile
import threading
import time
from collections.abc import Callable, Mapping

LOOKS_PER_LIMIT = 8
MOST_PAUSE_SECONDS = 0.5


class Watchdog:
    """Calls `on_hang(phase, seconds, stacks)` once, from a thread of its own, when a phase exceeds its limit.

    limits: seconds without progress for each phase; a phase without a limit is not watched
    """

    def __init__(self, limits: Mapping[str, float], on_hang: Callable[[str, float, str], None]) -> None:
        self._limits, self._on_hang = dict(limits), on_hang
        self._at: tuple[str, float] | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def progress(self, phase: str) -> None:
        """Tell that the rank made progress and is in `phase` now."""
        self._at = (phase, time.monotonic())

    def close(self) -> None:
        self._closed.set()
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        pause = min([MOST_PAUSE_SECONDS, *(limit / LOOKS_PER_LIMIT for limit in self._limits.values())])
        while not self._closed.wait(pause):
            if self._at is None:
                continue
            phase, since = self._at
            seconds = time.monotonic() - since
            if seconds > self._limits.get(phase, float("inf")):
                self._on_hang(phase, seconds, stacks())
                return


def stacks() -> str:
    """The stacks of all threads of this process, the most recent call first."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()

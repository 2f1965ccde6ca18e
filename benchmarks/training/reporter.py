"""A Reporter that tells of each step and saves as a run does: state is copied, then written behind the next steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from gemfleet.launcher.rank.checkpoint_uploads import CheckpointUploads
from gemfleet.train.interfaces import WriteCheckpoint

CLOSE_SECONDS = 120.0


class MeasuringReporter:
    """tell: gets each step's record while the context is open; slow_down: see `RankTask`."""

    def __init__(self, tell: Callable[[dict[str, Any]], None], rank: int, work: Path, slow_down: float = 0.0) -> None:
        self._tell, self._slow_down = tell, slow_down
        self._uploads = CheckpointUploads(lambda step, folder, metrics: None, work, lambda event: None)
        self._step_began = time.perf_counter()
        self._open = True

    def __enter__(self) -> MeasuringReporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        self._uploads.close(CLOSE_SECONDS)

    def progress(self, phase: str) -> None:
        self._step_began = time.perf_counter()

    def log_step(self, record: Mapping[str, Any]) -> None:
        if self._open:
            self._tell(dict(record))

    def save_checkpoint(self, step: int, write: WriteCheckpoint | None, metrics: Mapping[str, float]) -> None:
        """Written to this machine's disk and dropped; a network is not measured here."""
        if write is not None:
            self._uploads.save(step, write, metrics)

    def finish(self) -> None:
        self._uploads.wait()

    def latest_checkpoint(self, destination: Path) -> Path | None:
        """Every measurement starts afresh."""
        return None

    def should_stop(self) -> bool:
        """Asked once a step, after backward and clipping."""
        if self._slow_down:
            time.sleep(self._slow_down * (time.perf_counter() - self._step_began))
        return False

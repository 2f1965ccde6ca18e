"""How a launch ends: with an outcome, stopped before its ranks train, or failed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemfleet.cluster.registry.run_registry import RunState


class TrainingFailedError(RuntimeError):
    """Training ended without a result. The message is the cause; `logs` is where the rest is written."""

    def __init__(self, message: str, logs: Path) -> None:
        super().__init__(message, logs)
        self.message, self.logs = message, logs

    def __str__(self) -> str:
        return self.message


class StoppedBeforeFit(Exception):  # noqa: N818
    """Somebody asked the run to stop while no rank trains: before the first fit, or between two."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    output: the folder of the result; None when nothing was published, and `reason` says why
    interrupted: Ctrl-C ended it
    result: what rank 0 told at the end, and the run's figures
    """

    run_id: str
    state: RunState
    output: Path | None
    interrupted: bool
    result: dict[str, Any] | None
    reason: str = ""

"""How a launch ends: with an outcome, with a stop while no rank trains, or with a failure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemfleet.cluster.registry.run_registry import RunState


class TrainingFailedError(RuntimeError):
    """Training ended without a result. message: the cause; logs: the folder of all log files"""

    def __init__(self, message: str, logs: Path) -> None:
        super().__init__(message, logs)
        self.message, self.logs = message, logs

    def __str__(self) -> str:
        return self.message


class StoppedBeforeFit(Exception):  # noqa: N818
    """Somebody stopped the run while no rank trained: before the first fit, or between two."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    output: the folder of the result; None where nothing was published, and `reason` says why
    interrupted: whether Ctrl-C ended it
    result: rank 0's `TrainResult`, and the run's figures
    """

    run_id: str
    state: RunState
    output: Path | None
    interrupted: bool
    result: dict[str, Any] | None
    reason: str = ""

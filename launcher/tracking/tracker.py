"""What a tracker does, and where each kind of tracker is. Imports no tracker's package."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gemfleet.cluster.registry.run_records import RunState
from gemfleet.launcher.config.reports import TrackerConfig
from gemfleet.train.errors import UserError

URI_VARIABLE = "MLFLOW_TRACKING_URI"
REQUEST_SECONDS = 10  # a server that is silent for so long does not answer
SLOWEST_UPLOAD = 1_000_000  # bytes per second; slower than this counts as no progress


@dataclass(frozen=True)
class Points:
    """The figures of one record, by TensorBoard's tags. time: seconds since the epoch"""

    step: int
    time: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class Opened:
    """A tracker's run: its id, its page if it has one, and the last step that it has where it tells that."""

    id: str
    link: str | None
    last: int | None = None


class Tracker(Protocol):
    """One tracker's own run. A method raises whatever its package raises; it may be called again then."""

    def open(self, known: str | None) -> Opened:
        """Begin the tracker's run, or go on with the one of the id `known`."""
        ...

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Keep the settings of the run, flat or nested, without secrets."""
        ...

    def log(self, points: Sequence[Points]) -> None:
        """Keep figures, in the order of steps. The same figures may come twice."""
        ...

    def finish(self, state: RunState, reason: str, files: Sequence[Path]) -> None:
        """Keep these files of the result, and end the tracker's run."""
        ...


def upload_seconds(files: Sequence[Path]) -> float:
    """The longest that these files may take."""
    return sum(path.stat().st_size for path in files) / SLOWEST_UPLOAD


def place_of(config: TrackerConfig) -> str:
    """Where the tracker keeps its runs, for people. Raises UserError for an MLflow without an address."""
    if config.type == "wandb":
        return "/".join(filter(None, (config.entity, config.project or "gemfleet")))
    return mlflow_uri(config)


def mlflow_uri(config: TrackerConfig) -> str:
    """The address of MLflow: the configuration's, else the environment's. Raises UserError where both are silent."""
    found = config.uri or os.environ.get(URI_VARIABLE)
    if not found:
        raise UserError(f"trackers: uri of mlflow is null and ${URI_VARIABLE} is not set; give one of them")
    return TrackerConfig(type="mlflow", uri=found).uri or ""

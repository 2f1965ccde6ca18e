"""What a tracker does, and where each kind of tracker is. Imports no tracker's package."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from gemfleet.cluster.registry.run_records import RunState
from gemfleet.launcher.config.reports import TrackerConfig
from gemfleet.train.errors import UserError

URI_VARIABLE = "MLFLOW_TRACKING_URI"
REQUEST_SECONDS = 10  # a server that is silent for so long does not answer


@dataclass(frozen=True)
class Points:
    """The figures of one record, by TensorBoard's tags. time: seconds since the epoch"""

    step: int
    time: float
    values: Mapping[str, float]


class Tracker(Protocol):
    """One tracker's own run. A method raises whatever its package raises; it may be called again then."""

    def open(self, known: str | None) -> tuple[str, str | None]:
        """Begin the tracker's run, or go on with the one of the id `known`. Returns its id and its page, if any."""
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


def check_trackers(trackers: Sequence[TrackerConfig]) -> None:
    """Raise UserError for a tracker whose package is missing here, or that nothing leads to. Connects to nothing."""
    for config in trackers:
        package, extra = (config.type, config.type)
        if find_spec(package) is None:
            raise UserError(
                f"trackers: type {config.type} needs the package {package}, which is not installed here; "
                f"run `pip install 'gemfleet[{extra}]'` on the head, or take the tracker out"
            )
        if config.type == "mlflow" and mlflow_uri(config).startswith("sqlite:") and find_spec("sqlalchemy") is None:
            raise UserError(
                "trackers: uri of mlflow is an SQLite file, for which mlflow needs sqlalchemy and alembic; run "
                "`pip install sqlalchemy alembic` on the head, or give the address of a server"
            )

"""Checks the trackers of a configuration before anything starts. Connects to nothing."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from gemfleet.launcher.config.reports import TrackerConfig
from gemfleet.train.errors import UserError

from .tracker import mlflow_uri
from .wandb_tracker import has_credentials


def check_trackers(trackers: Sequence[TrackerConfig]) -> None:
    """Raise UserError for a tracker whose package or credentials are missing here, or that no address leads to."""
    for config in trackers:
        if find_spec(config.type) is None:
            raise UserError(
                f"trackers: type {config.type} needs a package that is not installed here; run "
                f"`pip install 'gemfleet[{config.type}]'` on the head, or take the tracker out"
            )
        if config.type == "mlflow" and mlflow_uri(config).startswith("sqlite:") and find_spec("sqlalchemy") is None:
            raise UserError(
                "trackers: uri of mlflow is an SQLite file, for which mlflow needs sqlalchemy and alembic; run "
                "`pip install sqlalchemy alembic` on the head, or give the address of a server"
            )
        if config.type == "wandb" and config.mode != "offline" and not has_credentials():
            raise UserError(
                "trackers: type wandb finds no key for its server; set $WANDB_API_KEY or run `wandb login` on the "
                "head, or give `mode: offline`"
            )

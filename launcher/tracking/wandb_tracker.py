"""Weights & Biases, online or in files that `wandb sync` sends later. API: https://docs.wandb.ai/ref/python/"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gemfleet.cluster.registry.run_records import RunState
from gemfleet.launcher.config.reports import TrackerConfig

from .tracker import REQUEST_SECONDS, Opened, Points, upload_seconds

FOLDERS = ("WANDB_DATA_DIR", "WANDB_CACHE_DIR")
QUIET = {"console": "off", "silent": True, "disable_git": True, "save_code": False, "x_save_requirements": False}
# Of the head alone, which does not train; the ranks' own figures are in our records.
WITHOUT_MACHINE = {"x_disable_stats": True, "x_disable_meta": True, "x_disable_machine_info": True}
LIMITS = {"init_timeout": REQUEST_SECONDS, "finish_timeout": REQUEST_SECONDS, "finish_timeout_raises": True}


class WandbTracker:
    """One run of ours as a run of W&B, under our id. See `Tracker`."""

    def __init__(self, config: TrackerConfig, run_id: str, folder: Path) -> None:
        for name in FOLDERS:
            os.environ.setdefault(name, str(folder / "wandb"))
        self._config, self._run_id, self._folder = config, run_id, folder
        self._run: Any = None

    def open(self, known: str | None) -> Opened:
        import wandb

        online = self._config.mode != "offline"
        try:
            self._run = wandb.init(
                project=self._config.project or "gemfleet",
                entity=self._config.entity,
                id=self._run_id,
                name=self._run_id,
                resume="allow",
                mode="online" if online else "offline",
                dir=str(self._folder),
                settings=wandb.Settings(**QUIET, **WITHOUT_MACHINE, **LIMITS),
            )
        except Exception:
            wandb.teardown()  # else the next try finds the id in use
            raise
        return Opened(self._run_id, self._run.url if online else None, self._run.step - 1 if online else None)

    def parameters(self, values: Mapping[str, Any]) -> None:
        self._run.config.update(dict(values), allow_val_change=True)

    def log(self, points: Sequence[Points]) -> None:
        for point in points:
            self._run.log({**point.values, "_timestamp": point.time}, step=point.step)

    def finish(self, state: RunState, reason: str, files: Sequence[Path]) -> None:
        import wandb

        self._run.summary.update({"state": str(state), "reason": reason})
        if files:
            artifact = wandb.Artifact(self._run_id, type="model")
            for path in files:
                artifact.add_file(str(path))
            sent = self._run.log_artifact(artifact)
            if self._config.mode != "offline":
                sent.wait(REQUEST_SECONDS + int(upload_seconds(files)))
        self._run.finish(exit_code=0 if state is RunState.SUCCEEDED else 1)


def has_credentials() -> bool:
    """Whether the environment or ~/.netrc has a key for W&B's server."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False

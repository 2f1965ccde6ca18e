"""What commands share about the runs of this head node."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from gemfleet.cluster.errors import RunConflict
from gemfleet.cluster.registry.run_registry import Run, RunRegistry
from gemfleet.train.config.home import gemfleet_home


def open_registry() -> RunRegistry:
    """The registry of $GEMFLEET_HOME, rebuilt if it is lost. First marks runs whose driver has gone as interrupted."""
    from gemfleet.launcher.runs.registry import registry_of

    registry = registry_of(gemfleet_home())
    registry.mark_interrupted()
    return registry


def refuse_running(run: Run) -> None:
    """Raise RunConflict if the run has not ended. A launch would notice too, but only after slow imports."""
    if not run.state.is_terminal:
        raise RunConflict(f"run {run.id} is {run.state}; stop it first (`gemfleet stop {run.id} --wait`)")


def run_folder(run_id: str) -> Path:
    return gemfleet_home() / "runs" / run_id


def moment(seconds: float | None) -> str:
    """The local date and time. Empty for None."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def size(count: float) -> str:
    """A number of bytes in words, as `12.3 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def spoken_tags(tags: Mapping[str, str]) -> str:
    """`purpose=baseline, team=search`. Empty for no tags."""
    return ", ".join(f"{key}={value}" for key, value in sorted(tags.items()))

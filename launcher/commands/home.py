"""The runs of this head node, as commands see them."""

from __future__ import annotations

import time
from pathlib import Path

from gemfleet.cluster.run_registry import RunRegistry
from gemfleet.train.home import gemfleet_home


def open_registry() -> RunRegistry:
    """The registry of $GEMFLEET_HOME. Runs whose driver is gone are marked as interrupted first."""
    registry = RunRegistry(gemfleet_home() / "gemfleet.db")
    registry.mark_interrupted()
    return registry


def run_folder(run_id: str) -> Path:
    return gemfleet_home() / "runs" / run_id


def moment(seconds: float | None) -> str:
    """Local date and time; empty for None."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def size(count: float) -> str:
    """`12.3 MiB`"""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"

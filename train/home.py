"""Where gemfleet keeps its things on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def gemfleet_home() -> Path:
    """$GEMFLEET_HOME, or ~/.gemfleet. The folder need not exist yet."""
    return Path(os.environ.get("GEMFLEET_HOME") or Path.home() / ".gemfleet").expanduser().absolute()


def cache_folder(name: str) -> Path:
    """The folder `cache/<name>` of the home, made when missing."""
    folder = gemfleet_home() / "cache" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder

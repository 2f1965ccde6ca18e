"""How a person names the place where the checkpoints of a run rest. Imports nothing heavy."""

from __future__ import annotations

import re
from pathlib import Path

OBJECT_STORE = re.compile(r"(?P<scheme>s3|gs)://(?P<bucket>[a-z0-9][a-z0-9._-]+)(?P<prefix>(/[A-Za-z0-9_=.-]+)*)/?")


def is_storage(text: str) -> bool:
    """Whether this names a place for checkpoints: an absolute path, or a bucket with a plain prefix."""
    if "\0" in text or ".." in Path(text).parts:
        return False
    return text.startswith("/") or OBJECT_STORE.fullmatch(text) is not None


def checkpoints_folder(storage: str | None, run_folder: Path) -> Path | None:
    """The folder of this machine that holds the run's checkpoints; None when they are in an object store."""
    if storage is None:
        return run_folder / "checkpoints"
    return Path(storage) / run_folder.name / "checkpoints" if storage.startswith("/") else None

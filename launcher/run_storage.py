"""The checkpoints of a run for commands that read them, wherever its configuration says that they rest."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gemfleet.cluster.checkpoint_store.shelf import Shelf
from gemfleet.cluster.checkpoint_store.storage import open_shelf

from .config_file import read_mapping
from .run_folder import RESOLVED_FILE


def storage_of(run_folder: Path) -> str | None:
    """`cluster.storage` of a run; None where it has none, or was removed so far that nobody knows."""
    try:
        cluster = read_mapping(run_folder / RESOLVED_FILE).get("cluster") or {}
    except FileNotFoundError:
        return None
    storage = cluster.get("storage")
    return None if storage is None else str(storage)


@contextmanager
def shelf_of(run_folder: Path) -> Iterator[Shelf]:
    """Of an object store, what is read is fetched to a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="gemfleet-checkpoint-") as cache:
        yield open_shelf(storage_of(run_folder), run_folder, Path(cache) / "fetched")

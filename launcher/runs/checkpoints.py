"""Opens the checkpoints of a run for commands that read them, on the head or in an object store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gemfleet.cluster.checkpoint_store.location import checkpoints_folder, open_shelf
from gemfleet.cluster.checkpoint_store.shelf import Shelf
from gemfleet.cluster.scratch import scratch_folder
from gemfleet.launcher.config.load import read_mapping
from gemfleet.train.errors import UserError

from .folder import RESOLVED_FILE


def storage_of(run_folder: Path) -> str | None:
    """`cluster.storage` of a run. None where it has none, or where its configuration cannot be read."""
    try:
        cluster = read_mapping(run_folder / RESOLVED_FILE).get("cluster")
    except (OSError, UserError):
        return None
    storage = cluster.get("storage") if isinstance(cluster, dict) else None
    return None if storage is None else str(storage)


@contextmanager
def shelf_of(run_folder: Path) -> Iterator[Shelf]:
    """The shelf of a run's checkpoints. Checkpoints of an object store are fetched to a temporary folder when read."""
    storage = storage_of(run_folder)
    if checkpoints_folder(storage, run_folder) is not None:
        yield open_shelf(storage, run_folder, run_folder)
        return
    with scratch_folder("gemfleet-checkpoint-") as cache:
        yield open_shelf(storage, run_folder, cache / "fetched")

"""The training loop's `Reporter` on a Ray worker: metrics through the outbox, checkpoints straight to the store.

Ray's own `report` is not used. It is a barrier over all ranks that waits for the controller's next look, about two
seconds a checkpoint, and what it remembers is not to be trusted on resume anyway.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from gemfleet.cluster.checkpoint_store.client import StoreClient
from gemfleet.cluster.errors import StoreError
from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.train.checkpoint.state import CHECKPOINT_FILES
from gemfleet.train.interfaces import WriteCheckpoint

from .checkpoint_uploads import CheckpointUploads
from .outbox import Outbox, Record

FINISH_SECONDS = 900.0
CLOSE_SECONDS = 20.0
FILE_RANKS = (0,)  # adapters are small: rank 0 writes the whole state


class RayReporter:
    """One rank's reporter. `store` is the checkpoint store's client of this rank's attempt.

    progress: told at each phase of the loop; the watchdog's
    stop_on_failure: whether a checkpoint that did not reach the head ends the run, as if it had been asked to stop
    """

    def __init__(
        self,
        store: StoreClient,
        outbox: Outbox,
        rank: int,
        work: Path,
        progress: Callable[[str], None],
        stop_on_failure: bool,
    ) -> None:
        self.progress = progress
        self._store, self._outbox, self._rank = store, outbox, rank
        self._stop_on_failure = stop_on_failure
        self._uploads = CheckpointUploads(self._send, work, outbox.put)

    def log_step(self, record: Record) -> None:
        self._outbox.put({"time": time.time(), **record})

    def should_stop(self) -> bool:
        return self._outbox.stop_wanted or (self._stop_on_failure and self._uploads.failed)

    def latest_checkpoint(self, destination: Path) -> Path | None:
        """What the store's manifests say; every rank of an attempt gets the same answer."""
        folder, damaged = self._store.fetch_resume_point(destination)
        if self._rank == 0:
            for sentence in damaged:
                message = f"a damaged checkpoint is passed over: {sentence}"
                self._outbox.put({"kind": "event", "event": EventKind.CHECKPOINT_DAMAGED, "message": message})
            self._outbox.put({"kind": "event", "event": EventKind.RESUME, "message": _starting_point(folder)})
        return folder

    def save_checkpoint(self, step: int, write: WriteCheckpoint | None, metrics: Mapping[str, float]) -> None:
        if write is not None:
            self._uploads.save(step, write, metrics)

    def finish(self) -> None:
        """Wait for this rank's copies and records."""
        self._uploads.wait(FINISH_SECONDS)
        self._outbox.flush()

    def close(self) -> None:
        """Call before the work folder goes, however training ended."""
        self._uploads.close(CLOSE_SECONDS)

    def _send(self, step: int, folder: Path, metrics: Mapping[str, float]) -> None:
        missing = [name for name in CHECKPOINT_FILES if not (folder / name).is_file()]
        if missing:  # a rank that ends may lose its folder meanwhile; half a checkpoint must not be committed
            raise StoreError(f"{missing[0]} was gone before it was sent")
        self._outbox.flush()  # a run that goes on from here never repeats these steps, so their records go first
        self._store.upload(step, folder, self._rank, FILE_RANKS, metrics)


def _starting_point(folder: Path | None) -> str:
    return "training starts at step 0" if folder is None else f"training goes on from {folder.name}"

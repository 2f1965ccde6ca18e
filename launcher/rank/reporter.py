"""The loop's `Reporter` of a rank that Ray started: records go through the outbox, checkpoints to the store.

It does not use Ray's own `report`. That is a barrier over all ranks which waits for the controller's next look, about
two seconds for each checkpoint, and a resume could not rely on what it keeps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from gemfleet.cluster.checkpoint_store.client import StoreClient
from gemfleet.cluster.errors import StoreError
from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.train.interfaces import WriteCheckpoint

from .checkpoint_uploads import CheckpointUploads
from .outbox import Outbox, Record

FINISH_SECONDS = 900.0
CLOSE_SECONDS = 20.0
FILE_RANKS = (0,)  # adapters are small: rank 0 writes the whole state


class RayReporter:
    """The reporter of one rank.

    store: the checkpoint store's client of this attempt; work: a folder of this rank
    progress: called at each phase of the loop, for the watchdog
    stop_on_failure: whether a lost checkpoint stops the run, as if somebody had asked it to
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

    def tell(self, kind: str, sentence: str, facts: Record) -> None:
        self._outbox.event(EventKind(kind), sentence, **facts)

    def should_stop(self) -> bool:
        return self._outbox.stop_wanted or (self._stop_on_failure and self._uploads.failed)

    def latest_checkpoint(self, destination: Path) -> Path | None:
        """The newest verified checkpoint, copied below `destination`. All ranks of an attempt get the same answer."""
        folder, damaged = self._store.fetch_resume_point(destination)
        if self._rank == 0:
            for sentence in damaged:
                self._outbox.event(EventKind.CHECKPOINT_DAMAGED, f"a damaged checkpoint is passed over: {sentence}")
            self._outbox.event(EventKind.RESUME, _starting_point(folder))
        return folder

    def save_checkpoint(self, step: int, write: WriteCheckpoint | None, metrics: Mapping[str, float]) -> None:
        if write is not None:
            self._uploads.save(step, write, metrics)

    def finish(self) -> None:
        """Wait until this rank's checkpoints and records have arrived."""
        self._uploads.wait(FINISH_SECONDS)
        self._outbox.flush()

    def close(self) -> None:
        """Call it before the work folder is removed, also when training failed."""
        self._uploads.close(CLOSE_SECONDS)

    def _send(self, step: int, folder: Path, metrics: Mapping[str, float]) -> None:
        from gemfleet.train.checkpoint.state import (
            CHECKPOINT_FILES,  # with torch, which the driver's side does not need
        )

        missing = [name for name in CHECKPOINT_FILES if not (folder / name).is_file()]
        if missing:  # a rank that is ending may have removed its folder; half a checkpoint must not be committed
            raise StoreError(f"{missing[0]} was gone before it was sent")
        self._outbox.flush()  # the records of these steps first: a run that resumes from here never repeats them
        self._store.upload(step, folder, self._rank, FILE_RANKS, metrics)


def _starting_point(folder: Path | None) -> str:
    return "training starts at step 0" if folder is None else f"training goes on from {folder.name}"

"""The training loop's `Reporter` on a Ray worker: metrics through the outbox, checkpoints through Ray Train."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
from gemfleet.cluster.checkpoint_store.client import StoreClient
from ray.train import CheckpointUploadMode

from .outbox import Outbox

log = logging.getLogger("gemfleet.launcher")
FINISH_SECONDS = 900.0
FILE_RANKS = (0,)  # adapters are small: rank 0 writes the whole state


class RayReporter:
    """One rank's reporter. `store` is the checkpoint store's client of this rank's attempt."""

    def __init__(self, store: StoreClient, outbox: Outbox, rank: int) -> None:
        self._store = store
        self._outbox = outbox
        self._rank = rank
        self._uploads = 0
        self._changed = threading.Condition()

    def log_step(self, record: Mapping[str, Any]) -> None:
        self._outbox.put({"time": time.time(), **record})

    def should_stop(self) -> bool:
        return self._outbox.stop_wanted

    def latest_checkpoint(self, destination: Path) -> Path | None:
        """What the store's manifests say, never what Ray remembers: Ray also lists what never arrived whole."""
        return self._store.fetch_latest(destination)

    def save_checkpoint(self, step: int, folder: Path | None, metrics: Mapping[str, float]) -> None:
        """Hand the folder to Ray, which copies it by `_upload` in the background. A barrier over all ranks."""
        checkpoint = None
        if folder is not None:
            checkpoint = ray.train.Checkpoint.from_directory(str(folder))
            with self._changed:
                self._uploads += 1
        ray.train.report(
            {"step": step, **metrics},
            checkpoint=checkpoint,
            checkpoint_dir_name=f"checkpoint-{step}",
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=partial(self._upload, step),
        )

    def finish(self) -> None:
        """Wait for this rank's copies and records."""
        deadline = time.monotonic() + FINISH_SECONDS
        with self._changed:
            self._changed.wait_for(lambda: self._uploads == 0, timeout=deadline - time.monotonic())
        self._outbox.flush()

    def _upload(self, step: int, checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        """Runs in Ray's upload thread. A failed copy is an event for the head, and training goes on: the checkpoint
        before it is still whole, and the next one may arrive.
        """
        storage = ray.train.get_context().get_storage()
        target = f"{storage.experiment_fs_path}/{name}"
        started = time.monotonic()
        try:
            self._store.upload(step, Path(checkpoint.path), self._rank, FILE_RANKS)
        except Exception as error:
            log.exception("checkpoint %s did not reach the head", name)
            self._outbox.put({"kind": "event", "event": "checkpoint_failed", "message": f"{name} was lost: {error}"})
        else:
            log.info("%s is on the head after %.1f s", name, time.monotonic() - started)
        finally:
            with self._changed:
                self._uploads -= 1
                self._changed.notify_all()
        return ray.train.Checkpoint(target, filesystem=storage.storage_filesystem)

"""The checkpoint store as an actor on the head: the only process that writes to the checkpoints' disk."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray.util
from numpy.typing import NDArray

from ..errors import StoreError
from ..head import HeadActor, start_on_head
from ..private import keep_private
from ..registry.event_kinds import EventKind
from ..registry.recorder_client import RecorderClient
from .files import StoredFiles
from .location import open_disk
from .manifest import FileEntry, Manifest
from .stream import Ticket
from .stream_server import StreamServer

log = logging.getLogger("gemfleet.cluster")
STORE_THREADS = 16


@dataclass(frozen=True)
class StorePolicy:
    """Which checkpoints stay, and how full the head's disk may become.

    keep:              how many of the newest checkpoints stay; None: all
    best_of:           the metric whose least value also keeps its checkpoint; None: no metric
    warn_free_bytes:   an event tells when less is free after a checkpoint
    refuse_free_bytes: the store refuses a file that would leave less free; so others can still write
    """

    keep: int | None = None
    best_of: str | None = None
    warn_free_bytes: int = 0
    refuse_free_bytes: int = 0


class CheckpointStore:
    """Serves one run's folder to all its ranks at once. A method may be called again after a restart of the store.

    A `generation` is one attempt of the run. StaleGeneration when a newer one has begun.
    """

    def __init__(
        self,
        run_folder: str,
        recorder: RecorderClient | None = None,
        policy: StorePolicy = StorePolicy(),
        storage: str | None = None,
    ) -> None:
        """`storage`: where committed checkpoints rest, see `open_shelf`. Uploads pass the head in any case."""
        keep_private()
        self._disk = open_disk(storage, Path(run_folder))
        self._files = StoredFiles(Path(run_folder) / "ray")
        self._recorder, self._policy = recorder, policy
        self._lock = threading.Lock()
        self._streams: StreamServer | None = None
        self._began: dict[tuple[int, int], float] = {}  # by (step, generation); forgotten when this process restarts

    def begin_attempt(self) -> int:
        """See `CheckpointDisk.begin_attempt`."""
        return self._disk.begin_attempt()

    def begin(self, step: int, generation: int, name: str, size: int = 0) -> None:
        """Begins a file of `size` bytes. StoreError when it would fill the disk more than the policy allows."""
        free, limit = self.free_bytes(), self._policy.refuse_free_bytes
        if free - size < limit:
            raise StoreError(
                f"the head's disk has {free / 2**20:,.1f} MiB free, too few for {size / 2**20:,.1f} MiB with "
                f"cluster.refuse_free_gib at {limit / 2**30:g}; free some (`gemfleet prune`)"
            )
        self._disk.begin(step, generation, name)
        self._began.setdefault((step, generation), time.monotonic())

    def write(self, step: int, generation: int, name: str, offset: int, chunk: NDArray[np.uint8]) -> None:
        """See `Arrivals.write`."""
        self._disk.write(step, generation, name, offset, chunk)

    def open_stream(self, step: int, generation: int, name: str, size: int) -> Ticket | None:
        """A ticket to send a file that has begun over a connection. None when only Ray's calls may carry it.

        That is when Ray encrypts what it sends (RAY_USE_TLS): a plain connection would undo what the user asked for.
        """
        if os.environ.get("RAY_USE_TLS", "0") != "0":
            return None
        with self._lock:
            if self._streams is None:
                self._streams = StreamServer(ray.util.get_node_ip_address())
        return self._streams.expect(partial(self._disk.receive, step, generation, name, size))

    def finish(self, step: int, generation: int, entry: FileEntry, check: str | None = None) -> None:
        """See `Arrivals.finish`."""
        self._disk.finish(step, generation, entry, check)

    def declare(
        self,
        step: int,
        generation: int,
        rank: int,
        entries: Sequence[FileEntry],
        expected_ranks: Sequence[int],
        metrics: Mapping[str, float] | None = None,
    ) -> bool:
        """See `CheckpointDisk.declare`. Returns whether the checkpoint is committed, and tells the recorder so."""
        manifest = self._disk.declare(step, generation, rank, entries, expected_ranks, metrics)
        if manifest is not None:
            self._announce(manifest)
        return manifest is not None

    def newest_verified(self) -> tuple[Manifest | None, list[str]]:
        """See `Shelf.newest_verified`."""
        return self._disk.shelf.newest_verified()

    def resume_point(self, generation: int) -> tuple[Manifest | None, list[str]]:
        """See `CheckpointDisk.resume_point`."""
        return self._disk.resume_point(generation)

    def manifests(self) -> list[Manifest]:
        """See `Shelf.manifests`."""
        return self._disk.shelf.manifests()

    def read(self, step: int, name: str, offset: int, size: int) -> NDArray[np.uint8]:
        """At most `size` bytes of a committed file, as uint8."""
        return np.frombuffer(self._disk.read(step, name, offset, size), dtype=np.uint8)

    def at_hand(self, step: int) -> str:
        """A folder of the head with this committed checkpoint; a copy when an object store holds it."""
        return str(self._disk.shelf.at_hand(step))

    def free_bytes(self) -> int:
        """Free bytes on the disk that uploads arrive on."""
        return shutil.disk_usage(self._disk.root).free

    def peak_memory_bytes(self) -> int:
        """The most memory that this process has held."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def file_call(self, method: str, *arguments: Any) -> Any:
        """Calls a method of `StoredFiles`: Ray Train's own small files."""
        return getattr(self._files, method)(*arguments)

    def _announce(self, manifest: Manifest) -> None:
        """Applies retention and tells the registry. It raises nothing: the checkpoint is on the disk already, and no
        rank can repair what fails here."""
        try:
            policy = self._policy
            removed = self._disk.retain(policy.keep, policy.best_of) if policy.keep is not None else []
            if self._recorder is not None:
                if (free := self.free_bytes()) < policy.warn_free_bytes:
                    message = f"only {free / 2**30:.1f} GiB are free on the head's disk; `gemfleet prune` frees some"
                    self._recorder.event(EventKind.DISK_LOW, message, {"free_bytes": free})
                path = self._disk.shelf.location(manifest.step)
                began = self._began.get((manifest.step, manifest.generation))
                seconds = None if began is None else time.monotonic() - began
                facts = manifest.step, path, manifest.total_bytes, manifest.generation, removed, seconds
                self._recorder.checkpoint_committed(*facts)
        except Exception:
            log.exception("checkpoint-%d is committed, but retention or the registry failed", manifest.step)


def start_store(
    run_id: str,
    run_folder: Path,
    recorder: RecorderClient | None,
    policy: StorePolicy = StorePolicy(),
    storage: str | None = None,
) -> HeadActor:
    """Starts the store of a run on the head. Returns when it answers."""
    store = begin_store(run_id, run_folder, recorder, policy, storage)
    store.call("free_bytes")
    return store


def begin_store(
    run_id: str, run_folder: Path, recorder: RecorderClient | None, policy: StorePolicy, storage: str | None
) -> HeadActor:
    """As `start_store`, but returns while it starts; the first call waits for it."""
    name = f"gemfleet-store-{run_id}"
    return start_on_head(CheckpointStore, name, str(run_folder), recorder, policy, storage, threads=STORE_THREADS)

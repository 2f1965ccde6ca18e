"""The checkpoint store as ranks and the driver see it: send a folder of files, fetch a verified checkpoint."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import ray
import ray.exceptions

from ..errors import StaleGeneration, StoreError
from ..head import HeadActor
from .manifest import FileEntry, Manifest
from .stream import Ticket, send_file

log = logging.getLogger("gemfleet.cluster")
CHUNK_BYTES = 16 * 1024 * 1024
CHUNKS_IN_FLIGHT = 3
ATTEMPTS = 4
STREAM_ATTEMPTS = 2  # further attempts go through Ray's calls, which no stranger can disturb
PAUSE_SECONDS = 1.0
REFUSALS = 3  # a restarted store refuses one connection, a firewall all


class StoreClient:
    """Picklable. `generation` is its attempt. Its writes raise StaleGeneration once a newer attempt has begun."""

    def __init__(self, store: HeadActor, generation: int = 0) -> None:
        self.store = store
        self.generation = generation
        self._refusals = 0  # connections in a row that the head did not accept

    def begin_attempt(self) -> int:
        """Begins a new generation, larger than all before it. Clients of older ones can write nothing from now on."""
        generation: int = self.store.call("begin_attempt")
        return generation

    def attempt(self, generation: int) -> StoreClient:
        """A client of the same store that writes for this generation."""
        return StoreClient(self.store, generation)

    def upload(
        self,
        step: int,
        folder: Path,
        rank: int,
        expected_ranks: Sequence[int],
        metrics: Mapping[str, float] | None = None,
    ) -> bool:
        """Sends every file in `folder`, then declares them. Returns whether that committed the checkpoint.

        The checkpoint commits when all `expected_ranks` have declared. StoreError after a few attempts; nobody sees
        what was sent by half.
        """
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        entries = [self._send_with_retries(step, path, str(path.relative_to(folder))) for path in paths]
        declared = step, self.generation, rank, entries, list(expected_ranks), metrics
        committed: bool = self.store.call("declare", *declared)
        return committed

    def fetch_resume_point(self, destination: Path) -> tuple[Path | None, list[str]]:
        """Copies the checkpoint that this attempt starts from to `destination/checkpoint-<step>`; verifies the copy.

        It is the newest that verifies on the head, the same for all ranks of the attempt. Returns the copy's folder, or
        None when there is no checkpoint, and a sentence for each newer checkpoint that is damaged and was passed over.
        """
        point: tuple[Manifest | None, list[str]] = self.store.call("resume_point", self.generation)
        manifest, damaged = point
        return (None if manifest is None else self.fetch(manifest, destination)), damaged

    def fetch(self, manifest: Manifest, destination: Path) -> Path:
        """Copies a committed checkpoint to `destination/checkpoint-<step>`. StoreError when the copy is damaged."""
        folder = destination / f"checkpoint-{manifest.step}"
        for entry in manifest.files:
            self._fetch(manifest.step, entry, folder / entry.path)
        manifest.verify(folder)
        return folder

    def at_hand(self, step: int) -> Path:
        """A folder of the head with a committed checkpoint. Only a process on the head can read it."""
        return Path(self.store.call("at_hand", step))

    def newest_verified(self) -> tuple[Manifest | None, list[str]]:
        """See `Shelf.newest_verified`."""
        found: tuple[Manifest | None, list[str]] = self.store.call("newest_verified")
        return found

    def manifests(self) -> list[Manifest]:
        """See `Shelf.manifests`."""
        found: list[Manifest] = self.store.call("manifests")
        return found

    def _send_with_retries(self, step: int, path: Path, name: str) -> FileEntry:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._send(step, path, name, by_stream=attempt <= STREAM_ATTEMPTS)
            except StaleGeneration:
                raise
            except (StoreError, ray.exceptions.RayError) as error:
                if attempt == ATTEMPTS:
                    raise StoreError(f"{name} of checkpoint-{step} did not reach the head: {error}") from error
                log.warning("sending %s again (%s)", name, error)
                time.sleep(PAUSE_SECONDS * attempt)
        raise AssertionError("unreachable")

    def _send(self, step: int, path: Path, name: str, by_stream: bool) -> FileEntry:
        size = path.stat().st_size
        self.store.call("begin", step, self.generation, name, size)
        streamed = self._send_by_stream(step, path, name, size) if by_stream else None
        sent = streamed or self._send_by_calls(step, path, name)
        entry, check = sent
        self.store.call("finish", step, self.generation, entry, check)
        return entry

    def _send_by_stream(self, step: int, path: Path, name: str, size: int) -> tuple[FileEntry, str | None] | None:
        """Sends a file over a connection. None when there is none, for example because of a firewall."""
        ticket: Ticket | None = None
        if self._refusals < REFUSALS:
            ticket = self.store.call("open_stream", step, self.generation, name, size)
        if ticket is None:
            return None
        try:
            sha256, check = send_file(ticket, path, size)
        except ConnectionError as error:
            self._refusals += 1
            log.warning("%s goes to the head through Ray's calls, which is slower: %s", name, error)
            return None
        self._refusals = 0
        return FileEntry(name, size, sha256), check

    def _send_by_calls(self, step: int, path: Path, name: str) -> tuple[FileEntry, str | None]:
        """Sends a file as numpy chunks. At most `CHUNKS_IN_FLIGHT` of them wait in memory on either side."""
        digest, offset = hashlib.sha256(), 0
        pending: list[ray.ObjectRef] = []
        with path.open("rb") as file:
            while block := file.read(CHUNK_BYTES):
                digest.update(block)
                if len(pending) == CHUNKS_IN_FLIGHT:
                    _raise_own(pending.pop(0))
                chunk = np.frombuffer(block, dtype=np.uint8)
                pending.append(self.store.handle.write.remote(step, self.generation, name, offset, chunk))
                offset += len(block)
        for reference in pending:
            _raise_own(reference)
        return FileEntry(name, offset, digest.hexdigest()), None

    def _fetch(self, step: int, entry: FileEntry, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            for offset in range(0, entry.size, CHUNK_BYTES):
                file.write(memoryview(self.store.call("read", step, entry.path, offset, CHUNK_BYTES)))


def _raise_own(reference: ray.ObjectRef) -> None:
    """Waits for a write. Raises the store's own error rather than Ray's wrapping of it."""
    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, StoreError) else error from None

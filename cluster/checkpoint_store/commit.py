"""Checkpoints on their way: the commit protocol as plain file operations on the head's disk, without Ray.

    checkpoints/generation                                the newest attempt of the run
    checkpoints/.incoming-<step>-<generation>/<file>      files on their way, each written to `.<file>.part` and renamed
    checkpoints/.incoming-<step>-<generation>/.rank-0     what a rank says its files are, once it has sent them all
    checkpoints/checkpoint-<step>/manifest.json           committed

When all expected ranks have declared and every file is verified, the shelf takes them over, the manifest last: in a
folder by one rename, in an object store by writing it. Until then nothing that reads manifests can see the checkpoint.
All state is on the disk, so a restarted store goes on.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import StaleGeneration, StoreError
from .folder_shelf import FolderShelf
from .manifest import FileEntry, Manifest, checked_name, remove_folder, sha256_of, sync_folder, write_durably
from .shelf import Shelf
from .stream import receive_file

INCOMING = re.compile(r"\.incoming-(?P<step>\d+)-(?P<generation>\d+)")


class CheckpointDisk:
    """Checkpoints of one run below `root`. Methods may be called from several threads."""

    def __init__(self, root: Path, shelf: Shelf | None = None) -> None:
        """`shelf`: where committed checkpoints rest; by default in `root` as well."""
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.shelf = shelf or FolderShelf(root)
        self._lock = threading.RLock()
        self._poisoned: dict[Path, str] = {}
        self._begun: dict[Path, object] = {}  # tells the newest upload of a file from one that was given up
        self._received: dict[Path, tuple[int, str]] = {}  # size and check of what came over a connection
        self._verified: dict[Path, FileEntry] = {}  # files on their way whose bytes were compared with the sender's
        self._committed: int | None = None  # the attempt of the newest checkpoint that this process committed
        self._resume_points: dict[int, tuple[Manifest | None, list[str]]] = {}

    @property
    def generation(self) -> int:
        """The newest attempt. Where the file that says so is damaged: the newest that left anything else."""
        try:
            return int((self.root / "generation").read_text())
        except FileNotFoundError:
            return 0
        except (OSError, ValueError):
            return self._newest_seen()

    def begin_attempt(self) -> int:
        """A new generation: from now on older ones can write nothing, and what they left half-done is removed."""
        with self._lock:
            generation = max(self.generation, self._newest_seen()) + 1
            write_durably(self.root / "generation", str(generation).encode())
            self.sweep()
            return generation

    def sweep(self) -> list[str]:
        """Remove unfinished uploads of older generations, and checkpoints without manifest; returns their names.

        A store of an older attempt that commits one just now was faster, or finds that it is gone: its folder is
        renamed before anything in it is deleted.
        """
        now = self.generation
        stale = self._arrivals(lambda step, generation: generation < now)
        for path in stale:
            with suppress(OSError):
                remove_folder(path)
        return [path.name for path in stale] + self.shelf.sweep()

    def begin(self, step: int, generation: int, name: str) -> None:
        """Start a file, or start it again after an error: what arrived of it before is dropped."""
        part = self._part(step, generation, name)
        part.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        self._begun[part] = object()
        self._poisoned.pop(part, None)
        self._received.pop(part, None)
        self._verified.pop(part.with_name(Path(name).name), None)

    def write(self, step: int, generation: int, name: str, offset: int, chunk: NDArray[np.uint8]) -> None:
        """Put `chunk` at `offset` of a file on its way; the same chunk may come twice, and chunks in any order.

        The first error poisons the file: it can then be neither continued nor finished, only begun again.
        """
        part = self._part(step, generation, name)
        if part in self._poisoned:
            raise StoreError(f"the upload of {name} failed before ({self._poisoned[part]}); begin it again")
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                _write_all(descriptor, np.ascontiguousarray(chunk).data, offset)
            finally:
                os.close(descriptor)
        except OSError as error:
            self._poisoned[part] = error.strerror or str(error)
            raise StoreError(f"{name} of checkpoint-{step} cannot be written on the head: {error.strerror}") from error

    def receive(self, step: int, generation: int, name: str, size: int, connection: socket.socket) -> None:
        """Take a whole file from a connection. Whatever ends it early poisons the file, as in `write`."""
        part = self._part(step, generation, name)
        begun = self._begun.get(part)
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                check = receive_file(connection, descriptor, size)
            finally:
                os.close(descriptor)
        except (OSError, StoreError) as error:
            if self._begun.get(part) is begun:  # else the sender has given this one up and begun again already
                self._poisoned[part] = getattr(error, "strerror", None) or str(error)
            raise
        if self._begun.get(part) is begun:
            self._received[part] = size, check

    def finish(self, step: int, generation: int, entry: FileEntry, check: str | None = None) -> None:
        """The whole file was sent: compare it, make it durable, give it its name. May be repeated.

        check: the sender's, of a file that came over a connection, see `send_file`. It is compared with that of the
        bytes that were written here; without one, or after a restart, the file is read again and its sha256 compared.
        """
        part = self._part(step, generation, entry.path)
        final = part.with_name(Path(entry.path).name)
        if part in self._poisoned:
            raise StoreError(f"the upload of {entry.path} failed before ({self._poisoned[part]}); it is not published")
        if not part.exists() and final.exists() and _matches(final, entry):
            return
        if entry.size == 0:
            part.touch()  # no chunk was ever sent
        as_sent = check is not None and self._received.pop(part, None) == (entry.size, check)
        if not part.exists() or not (as_sent or _matches(part, entry)):
            raise StoreError(f"{entry.path} of checkpoint-{step} arrived incomplete or damaged; send it again")
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.rename(final)
        sync_folder(final.parent)
        self._begun.pop(part, None)
        self._verified[final] = entry

    def declare(
        self,
        step: int,
        generation: int,
        rank: int,
        entries: Sequence[FileEntry],
        expected_ranks: Sequence[int],
        metrics: Mapping[str, float] | None = None,
    ) -> Manifest | None:
        """Rank `rank` has sent all its files; returns the manifest when that completed the checkpoint. May be repeated.

        A step that is committed already, by this attempt or an older one, stays as it is. `metrics` of the rank that
        completes it are kept in the manifest. None, too, when a newer attempt began meanwhile and took the files away.
        """
        with self._lock:
            folder = self._incoming(step, generation)
            if (committed := self.shelf.committed(step)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                return committed
            folder.mkdir(parents=True, exist_ok=True)
            said = json.dumps([asdict(entry) for entry in entries]).encode()
            write_durably(folder / f".rank-{rank}", said)
            if not all((folder / f".rank-{r}").exists() for r in expected_ranks):
                return None
            try:
                return self._commit(step, generation, folder, expected_ranks, metrics or {})
            except (OSError, StoreError):
                if generation == self.generation:
                    raise
                return None

    def resume_point(self, generation: int) -> tuple[Manifest | None, list[str]]:
        """`newest_verified`, and the same answer to every rank of one attempt."""
        with self._lock:
            self._incoming(0, generation)  # refuses an attempt that is over
            if generation not in self._resume_points:
                self._resume_points = {generation: self.shelf.newest_verified()}
            return self._resume_points[generation]

    def retain(self, keep: int, best_of: str | None = None) -> list[int]:
        """See `Shelf.retain`. A store whose last commit was for an attempt that is over removes nothing any more: the
        newer attempt may read it."""
        with self._lock:
            if self._committed not in (None, self.generation):
                return []
            return self.shelf.retain(keep, best_of)

    def read(self, step: int, name: str, offset: int, size: int) -> bytes:
        """At most `size` bytes of a committed file. StoreError when it is not there, or not in the store."""
        try:
            with self._inside(self.shelf.at_hand(step) / checked_name(name)).open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise StoreError(f"{name} of checkpoint-{step} cannot be read on the head: {error.strerror}") from error

    def _commit(
        self, step: int, generation: int, folder: Path, ranks: Sequence[int], metrics: Mapping[str, float]
    ) -> Manifest:
        said = [json.loads((folder / f".rank-{rank}").read_text()) for rank in ranks]
        files = tuple(FileEntry(**entry) for entries in said for entry in entries)
        if not files:
            raise StoreError(f"no rank sent any file for checkpoint-{step}; an empty checkpoint is not committed")
        if len({entry.path for entry in files}) < len(files):
            raise StoreError(
                f"two ranks sent a file of the same name for checkpoint-{step}; name files after their rank"
            )
        manifest = Manifest(step, generation, time.time(), files, metrics)
        if not all(self._verified.pop(folder / entry.path, None) == entry for entry in files):
            manifest.verify(folder)  # a restarted store did not see them arrive
        self.shelf.publish(manifest, folder)
        self._committed = generation
        for path in self._arrivals(lambda s, g: g == generation and s <= step):
            shutil.rmtree(path, ignore_errors=True)  # of ranks that gave up; each sends one checkpoint after the other
        return manifest

    def _arrivals(self, wanted: Callable[[int, int], bool]) -> list[Path]:
        """Folders of uploads on their way whose step and generation are wanted."""
        matches = [(path, INCOMING.fullmatch(path.name)) for path in sorted(self.root.iterdir())]
        return [path for path, match in matches if match and wanted(int(match["step"]), int(match["generation"]))]

    def _newest_seen(self) -> int:
        """The newest attempt that committed a checkpoint or has files on their way."""
        arriving = [INCOMING.fullmatch(path.name) for path in self.root.iterdir()]
        seen = [int(match["generation"]) for match in arriving if match]
        return max([0, *seen, *(manifest.generation for manifest in self.shelf.manifests())])

    def _incoming(self, step: int, generation: int) -> Path:
        if generation != self.generation:
            raise StaleGeneration(
                f"attempt {generation} may not write checkpoint-{step}: attempt {self.generation} of this run has begun"
            )
        return self.root / f".incoming-{step}-{generation}"

    def _part(self, step: int, generation: int, name: str) -> Path:
        final = self._incoming(step, generation) / checked_name(name)
        return self._inside(final.with_name(f".{final.name}.part"))

    def _inside(self, path: Path) -> Path:
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise StoreError(f"{path.name} lies behind a link that leaves the checkpoint store; remove the link")
        return path


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _matches(path: Path, entry: FileEntry) -> bool:
    return path.stat().st_size == entry.size and sha256_of(path) == entry.sha256

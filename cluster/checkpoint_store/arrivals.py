"""Files on their way to the head's disk: each is written to a part, compared with what was sent, synced and renamed."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..durable import sync_folder
from ..errors import StoreError
from .manifest import FileEntry, sha256_of
from .stream import receive_file


@dataclass(frozen=True)
class Upload:
    """One file of a checkpoint on its way. It has the path `part` until it is whole, and then `final`."""

    step: int
    name: str
    part: Path

    @property
    def final(self) -> Path:
        """The file's path once it is whole."""
        return self.part.with_name(Path(self.name).name)


class Arrivals:
    """Takes files from ranks. The first error poisons an upload: it must then begin again.

    What this object remembers only saves work: after a restart of the store, files are read again and compared.
    """

    def __init__(self) -> None:
        self._poisoned: dict[Path, str] = {}
        self._begun: dict[Path, object] = {}  # tells the newest upload of a file from one that was given up
        self._received: dict[Path, tuple[int, str]] = {}  # size and check of what came over a connection
        self._verified: dict[Path, FileEntry] = {}  # whole files whose bytes were compared with the sender's

    def begin(self, upload: Upload) -> None:
        """Begins a file, also one that failed before: what arrived of it goes."""
        part = upload.part
        part.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        self._begun[part] = object()
        self._poisoned.pop(part, None)
        self._received.pop(part, None)
        self._verified.pop(upload.final, None)

    def write(self, upload: Upload, offset: int, chunk: NDArray[np.uint8]) -> None:
        """Puts `chunk` at `offset`. Chunks may come in any order, and twice. StoreError poisons the upload."""
        part = upload.part
        if part in self._poisoned:
            raise StoreError(f"the upload of {upload.name} failed before ({self._poisoned[part]}); begin it again")
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                _write_all(descriptor, np.ascontiguousarray(chunk).data, offset)
            finally:
                os.close(descriptor)
        except OSError as error:
            self._poisoned[part] = error.strerror or str(error)
            message = f"{upload.name} of checkpoint-{upload.step} cannot be written on the head: {error.strerror}"
            raise StoreError(message) from error

    def receive(self, upload: Upload, size: int, connection: socket.socket) -> None:
        """Takes a whole file of `size` bytes from a connection. Any error poisons the upload and is raised."""
        part = upload.part
        begun = self._begun.get(part)
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                check = receive_file(connection, descriptor, size)
            finally:
                os.close(descriptor)
        except (OSError, StoreError) as error:
            if self._begun.get(part) is begun:  # else the sender gave this upload up and has begun again
                self._poisoned[part] = getattr(error, "strerror", None) or str(error)
            raise
        if self._begun.get(part) is begun:
            self._received[part] = size, check

    def finish(self, upload: Upload, entry: FileEntry, check: str | None = None) -> None:
        """Compares a file that was sent whole, makes it durable and gives it its name. May be repeated.

        check: the sender's check of a file that came over a connection, see `send_file`. It is compared with the check
               of the bytes that were written here. Without one, or after a restart, the file's sha256 is compared.
        """
        part, final = upload.part, upload.final
        if part in self._poisoned:
            raise StoreError(f"the upload of {entry.path} failed before ({self._poisoned[part]}); it is not published")
        if not part.exists() and final.exists() and _matches(final, entry):
            return
        if entry.size == 0:
            part.touch()  # no chunk was ever sent
        as_sent = check is not None and self._received.pop(part, None) == (entry.size, check)
        if not part.exists() or not (as_sent or _matches(part, entry)):
            raise StoreError(f"{entry.path} of checkpoint-{upload.step} arrived incomplete or damaged; send it again")
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.rename(final)
        sync_folder(final.parent)
        self._begun.pop(part, None)
        self._verified[final] = entry

    def take_verified(self, final: Path, entry: FileEntry) -> bool:
        """Whether `finish` compared this file. It answers once, because the file leaves then."""
        return self._verified.pop(final, None) == entry


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _matches(path: Path, entry: FileEntry) -> bool:
    return path.stat().st_size == entry.size and sha256_of(path) == entry.sha256

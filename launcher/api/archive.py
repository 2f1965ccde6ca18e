"""Streams a checkpoint, or other files, as one tar archive.

A checkpoint is verified first, and an archive has the same bytes every time. All files are open before the first byte
is sent, so the archive stays whole when the run removes them meanwhile.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gemfleet.cluster.checkpoint_store.manifest import MANIFEST_FILE, Manifest
from gemfleet.cluster.errors import StoreError

from .problems import ApiError

MEDIA_TYPE = "application/x-tar"
CHUNK_BYTES = 1 << 20


def archive_answers() -> dict[int | str, dict[str, Any]]:
    """The good answer of a route that sends an archive, for its documentation."""
    digest = {"description": "sha-256 of the archive (RFC 9530)", "schema": {"type": "string"}}
    content = {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}
    described = "the archive; the same bytes every time"
    return {200: {"description": described, "content": content, "headers": {"Repr-Digest": digest}}}


@dataclass(frozen=True)
class Member:
    """One file of the archive: its tar header, its content, and its size in bytes."""

    header: bytes
    file: BinaryIO
    size: int

    @property
    def padding(self) -> bytes:
        return bytes(-self.size % tarfile.BLOCKSIZE)


@dataclass(frozen=True)
class Archive:
    """The members in order. digest: the sha256 of the whole archive; size: in bytes"""

    name: str
    members: tuple[Member, ...]
    digest: bytes
    size: int

    def headers(self) -> dict[str, str]:
        return {
            "Content-Length": str(self.size),
            "Content-Disposition": f'attachment; filename="{self.name}.tar"',
            "Repr-Digest": f"sha-256=:{base64.b64encode(self.digest).decode()}:",
        }

    def chunks(self) -> Iterator[bytes]:
        """The bytes of the archive. Call it once: it closes the files."""
        try:
            yield from _chunks(self.members)
        finally:
            close_all(self.members)


def open_archive(folder: Path, name: str) -> Archive:
    """The archive of a committed checkpoint.

    Raises ApiError 409 when a file is missing or differs from the manifest, 404 when the checkpoint has been removed.
    """
    members: list[Member] = []
    try:
        manifest = Manifest.read(folder)
        for entry in manifest.files:
            file = _open(folder / entry.path)
            members.append(
                Member(header_of(f"{folder.name}/{entry.path}", entry.size, manifest.created_at), file, entry.size)
            )
            if os.fstat(file.fileno()).st_size != entry.size or _sha256(file) != entry.sha256:
                raise StoreError(f"{entry.path} is damaged: it is not what the manifest says")
        text = manifest.to_json().encode()
        header = header_of(f"{folder.name}/{MANIFEST_FILE}", len(text), manifest.created_at)
        members.append(Member(header, io.BytesIO(text), len(text)))
    except (OSError, StoreError) as error:
        close_all(members)
        if not folder.exists():
            raise ApiError(404, f"{folder.name} was removed, as its run keeps only its newest checkpoints") from None
        reason = str(error.strerror if isinstance(error, OSError) else error).replace(str(folder), folder.name)
        raise ApiError(409, f"{folder.name} cannot be downloaded: {reason}") from None
    return archive_of(name, members)


def archive_of(name: str, members: list[Member]) -> Archive:
    """The archive of open files. It reads them all once, for its digest."""
    digest, size = hashlib.sha256(), 0
    for chunk in _chunks(members):
        digest.update(chunk)
        size += len(chunk)
    return Archive(name, tuple(members), digest.digest(), size)


def _open(path: Path) -> BinaryIO:
    """Open a file, but never through a link, which could lead out of the checkpoint's folder."""
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")


def header_of(name: str, size: int, moment: float) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = size, int(moment), 0o644
    return info.tobuf(format=tarfile.PAX_FORMAT)


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(members: list[Member] | tuple[Member, ...]) -> Iterator[bytes]:
    for member in members:
        yield member.header
        member.file.seek(0)
        while chunk := member.file.read(CHUNK_BYTES):
            yield chunk
        yield member.padding
    yield bytes(2 * tarfile.BLOCKSIZE)


def close_all(members: list[Member] | tuple[Member, ...]) -> None:
    for member in members:
        member.file.close()

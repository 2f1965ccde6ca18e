"""Describes a staged folder: its files, cut into chunks with hashes, and one name for the whole content."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..errors import ClusterError

CHUNK_BYTES = 16 * 1024 * 1024
HASH_THREADS = max(1, min(8, (os.cpu_count() or 1) // 2))  # hashlib lets other threads run while it hashes


@dataclass(frozen=True)
class Chunk:
    """A part of one file: the bytes [offset, offset + size) and their sha256. An empty file is one empty chunk."""

    path: str
    offset: int
    size: int
    sha256: str


@dataclass(frozen=True)
class StagedFile:
    """One file of the folder: its relative path, its size in bytes, and its chunks in order."""

    path: str
    size: int
    chunks: tuple[Chunk, ...]


def list_files(folder: Path, chunk_bytes: int = CHUNK_BYTES) -> tuple[StagedFile, ...]:
    """Reads and hashes every file below `folder`. Returns them by name. Links are followed only to regular files.

    ClusterError when the folder is missing or empty, holds something else, or cannot be read.
    """
    if not folder.is_dir():
        raise ClusterError(f"the folder {str(folder)!r} does not exist on this node; correct the path")
    files = []
    for path in sorted(_walk(folder)):
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise ClusterError(f"{str(path)!r} cannot be read ({error.strerror}); repair or remove it") from error
        if not stat.S_ISREG(mode):
            raise ClusterError(f"{str(path)!r} is not a regular file, nor a link to one; remove it from the folder")
        files.append(_describe(folder, path, chunk_bytes))
    if not files:
        raise ClusterError(f"the folder {str(folder)!r} holds no files; nothing can be staged from it")
    return tuple(files)


def all_chunks(files: Sequence[StagedFile]) -> list[Chunk]:
    """Every chunk of the folder. The number of a chunk is its place in this list."""
    return [chunk for file in files for chunk in file.chunks]


def content_hash(files: Sequence[StagedFile]) -> str:
    """One name for this content. Equal files, cut into equal chunks, have the same name wherever they lie."""
    lines = (f"{chunk.path}\0{chunk.offset}\0{chunk.size}\0{chunk.sha256}\n" for chunk in all_chunks(files))
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:32]


def read_chunk(folder: Path, chunk: Chunk) -> bytes:
    """The chunk's bytes in `folder` now; fewer when the file is shorter."""
    with (folder / chunk.path).open("rb") as file:
        file.seek(chunk.offset)
        return file.read(chunk.size)


def intact(folder: Path, chunks: Sequence[Chunk]) -> list[bool]:
    """For each chunk, whether `folder` holds just these bytes. Several threads read everything."""
    with ThreadPoolExecutor(HASH_THREADS) as pool:
        return list(pool.map(lambda chunk: _is_intact(folder, chunk), chunks))


def holds(folder: Path, files: Sequence[StagedFile]) -> bool:
    """Whether every file is in `folder`, byte for byte. It compares sizes first, which costs nothing."""
    return same_sizes(folder, files) and all(intact(folder, all_chunks(files)))


def same_sizes(folder: Path, files: Sequence[StagedFile]) -> bool:
    """Whether every file is in `folder` with its size."""
    try:
        return all((folder / file.path).stat().st_size == file.size for file in files)
    except OSError:
        return False


def _is_intact(folder: Path, chunk: Chunk) -> bool:
    try:
        return hashlib.sha256(read_chunk(folder, chunk)).hexdigest() == chunk.sha256
    except OSError:
        return False


def _describe(folder: Path, path: Path, chunk_bytes: int) -> StagedFile:
    name, size = path.relative_to(folder).as_posix(), path.stat().st_size

    def chunk_at(offset: int) -> Chunk:
        length = min(chunk_bytes, size - offset)
        data = read_chunk(folder, Chunk(name, offset, length, ""))
        return Chunk(name, offset, length, hashlib.sha256(data).hexdigest())

    with ThreadPoolExecutor(HASH_THREADS) as pool:
        return StagedFile(name, size, tuple(pool.map(chunk_at, range(0, max(1, size), chunk_bytes))))


def _walk(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            yield from _walk(entry)
        else:
            yield entry

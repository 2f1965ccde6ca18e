"""A folder of the driver's node brought to every node, once each, through Ray's object store.

The driver reads a chunk, puts it into the store once, and one task on each node that lacks the folder writes it; nodes
pull chunks from one another. A copy gets its name, the hash of its content, only when it is whole and verified.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ClusterError

CHUNK_BYTES = 64 * 1024 * 1024
CHUNKS_IN_FLIGHT = 4
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class StagedFile:
    """One file of the folder: its relative path, size in bytes and sha256 in hexadecimal."""

    path: str
    size: int
    sha256: str


def stage_folder(
    folder: Path, cache_root: str, on_progress: Progress | None = None, *, chunk_bytes: int = CHUNK_BYTES
) -> dict[str, str]:
    """Bring `folder` to every living node; returns, for each node id, the path of its content there.

    Where that folder exists already with the same content it is used in place; elsewhere the target is
    `<cache_root>/<hash of the content>`. `on_progress` gets bytes sent and bytes in all. ClusterError when the folder
    holds no files or something that is neither file nor folder, changes meanwhile, or a node cannot take it.
    """
    import ray

    from .inventory import list_nodes

    folder = folder.resolve()
    files = list_files(folder)
    own = ray.get_runtime_context().get_node_id()
    others = [node.id for node in list_nodes() if node.id != own]
    target = str(Path(cache_root) / content_hash(files))
    present = _on_nodes(others, find_copy, str(folder), target, files)
    staged = {own: str(folder)} | {node: path for node, path in present.items() if path is not None}
    lacking = [node for node in others if node not in staged]
    if lacking:
        staged |= send_folder(folder, files, target, lacking, on_progress, chunk_bytes)
    return staged


def list_files(folder: Path) -> tuple[StagedFile, ...]:
    """Every file below `folder` with its hash, by name. Symbolic links are followed only to regular files."""
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
        files.append(StagedFile(path.relative_to(folder).as_posix(), path.stat().st_size, _sha256(path)))
    if not files:
        raise ClusterError(f"the folder {str(folder)!r} holds no files; nothing can be staged from it")
    return tuple(files)


def _walk(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            yield from _walk(entry)
        else:
            yield entry


def content_hash(files: Sequence[StagedFile]) -> str:
    """One name for this content: equal for equal files, wherever they lie."""
    lines = "".join(f"{file.path}\0{file.size}\0{file.sha256}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()[:32]


def find_copy(folder: str, target: str, files: Sequence[StagedFile]) -> str | None:
    """Runs on a node: the folder's own path or the cached copy, whichever has this content. A damaged copy is removed.

    Every byte is read: a disk that lost some would otherwise train on a damaged model.
    """
    if _holds(Path(folder), files):
        return folder
    if _holds(Path(target), files):
        return target
    shutil.rmtree(target, ignore_errors=True)
    return None


def write_chunk(target: str, path: str, offset: int, chunk: NDArray[np.uint8]) -> None:
    """Runs on a node: put a chunk at its place in the unfinished copy. May be repeated, in any order."""
    file = _unfinished(target) / path
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        data = memoryview(np.ascontiguousarray(chunk).data)
        while data:
            written = os.pwrite(descriptor, data, offset)
            data, offset = data[written:], offset + written
    finally:
        os.close(descriptor)


def finish_copy(target: str, files: Sequence[StagedFile]) -> str:
    """Runs on a node: verify the copy, make it durable, and give it its name in one rename. May be repeated."""
    copy = _unfinished(target)
    if not copy.exists() and _holds(Path(target), files):
        return target
    for file in files:
        if _damaged(copy, file):
            shutil.rmtree(copy, ignore_errors=True)
            raise ClusterError(f"{file.path} arrived damaged, or it changed while it was sent; stage the folder again")
        with (copy / file.path).open("rb") as handle:
            os.fsync(handle.fileno())
    try:
        copy.rename(target)
    except OSError:  # another node of this host was first
        if not _holds(Path(target), files):
            raise
        shutil.rmtree(copy)
    return target


def send_folder(
    folder: Path,
    files: Sequence[StagedFile],
    target: str,
    nodes: Sequence[str],
    on_progress: Progress | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> dict[str, str]:
    """Copy the folder to `target` on each of `nodes`; returns the path for each of them.

    Only a few chunks are in flight, so that the object store never fills.
    """
    import ray

    total, sent = sum(file.size for file in files), 0
    in_flight: list[tuple[int, list[Any]]] = []
    for path, offset, chunk in _chunks(folder, files, chunk_bytes):
        if len(in_flight) == CHUNKS_IN_FLIGHT:
            sent += _arrived(in_flight.pop(0))
            if on_progress is not None:
                on_progress(sent, total)
        reference = ray.put(chunk)
        tasks = [_task(write_chunk, node).remote(target, path, offset, reference) for node in nodes]
        in_flight.append((len(chunk), tasks))
    for waiting in in_flight:
        sent += _arrived(waiting)
        if on_progress is not None:
            on_progress(sent, total)
    return _on_nodes(nodes, finish_copy, target, files)


def _chunks(
    folder: Path, files: Sequence[StagedFile], chunk_bytes: int
) -> Iterator[tuple[str, int, NDArray[np.uint8]]]:
    """(path, offset, bytes) in order; an empty file is one empty chunk."""
    for file in files:
        with (folder / file.path).open("rb") as handle:
            for offset in range(0, max(1, file.size), chunk_bytes):
                yield file.path, offset, np.frombuffer(handle.read(chunk_bytes), dtype=np.uint8)


def _arrived(chunk: tuple[int, list[Any]]) -> int:
    _get(chunk[1])
    return chunk[0]


def _on_nodes(nodes: Sequence[str], function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    results = _get([_task(function, node).remote(*arguments) for node in nodes])
    return dict(zip(nodes, results, strict=True))


def _task(function: Callable[..., Any], node: str) -> Any:
    """A task that takes no CPU from training, on this node or nowhere."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    return _remote(function).options(num_cpus=0, scheduling_strategy=strategy, max_retries=3)


@cache
def _remote(function: Callable[..., Any]) -> Any:
    """Once for each function: Ray ships every new remote function to the cluster anew."""
    import ray

    return ray.remote(function)


def _get(references: list[Any]) -> list[Any]:
    import ray
    import ray.exceptions

    try:
        return list(ray.get(references))
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, ClusterError):
            raise cause from None
        raise ClusterError(
            f"a node could not take the staged folder: {cause}; see to its disk, then start again"
        ) from error
    except ray.exceptions.RayError as error:
        raise ClusterError(f"a node was lost while a folder was staged to it ({error}); start the run again") from error


def _unfinished(target: str) -> Path:
    """One for each node, because two nodes of a host share its disk."""
    import ray

    final = Path(target)
    return final.with_name(f".{final.name}.{ray.get_runtime_context().get_node_id()[:16]}.part")


def _holds(folder: Path, files: Sequence[StagedFile]) -> bool:
    return folder.is_dir() and not any(_damaged(folder, file) for file in files)


def _damaged(folder: Path, file: StagedFile) -> bool:
    path = folder / file.path
    try:
        return path.stat().st_size != file.size or _sha256(path) != file.sha256
    except OSError:
        return True


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

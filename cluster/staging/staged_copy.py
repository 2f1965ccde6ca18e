"""One node's copy of a staged folder, as file operations: it takes chunks, and gets its name when it is whole."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import ClusterError
from .staged_files import StagedFile, all_chunks, holds, intact, read_chunk, same_sizes

NODE_LETTERS = 16


@dataclass(frozen=True)
class Held:
    """What a node has. path: of a whole copy, None without one; chunks: the numbers of its chunks of a partial copy."""

    path: str | None
    chunks: frozenset[int] = frozenset()


class StagedCopy:
    """The copy that becomes `target` on the node with the id `node`. Every method may be repeated.

    Until the copy is whole, it lies beside the target under the node's id: two nodes of one host share a disk.
    """

    def __init__(self, files: Sequence[StagedFile], target: Path, node: str) -> None:
        self._files, self._chunks, self._target = files, all_chunks(files), target
        self._part = target.with_name(f".{target.name}.{node[:NODE_LETTERS]}.part")

    def find(self, folder: Path, living: Collection[str]) -> Held:
        """What this node has: a whole copy, or the part that an earlier staging left.

        A whole copy may be `folder` itself, the cached target, or a snapshot in this node's Hugging Face cache. The
        part may be of a node that is not among the `living` ids: a host gets another node id when Ray starts anew.
        It reads every byte, because a damaged copy would train a damaged model.
        """
        for place in (folder, self._target, *hub_snapshots()):
            if same_sizes(place, self._files) and _same_weights(place, self._files) and holds(place, self._files):
                return Held(str(place))
        shutil.rmtree(self._target, ignore_errors=True)
        self._adopt(living)
        if not self._part.is_dir():
            return Held(None)
        return Held(None, frozenset(number for number, good in enumerate(intact(self._part, self._chunks)) if good))

    def take(self, number: int, data: NDArray[np.uint8]) -> None:
        """Writes a chunk to its place. Chunks may come in any order. ClusterError when the bytes are not its own."""
        chunk, view = self._chunks[number], memoryview(np.ascontiguousarray(data).data)
        if hashlib.sha256(view).hexdigest() != chunk.sha256:
            raise ClusterError(f"{chunk.path} arrived damaged, or it changed while it was sent; stage the folder again")
        file = self._part / chunk.path
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            offset = chunk.offset
            while view:
                written = os.pwrite(descriptor, view, offset)
                view, offset = view[written:], offset + written
        finally:
            os.close(descriptor)

    def give(self, number: int, source: str | None) -> NDArray[np.uint8]:
        """The bytes of a chunk, from the whole copy at `source`, or from the partial copy when that is None."""
        folder = self._part if source is None else Path(source)
        return as_array(read_chunk(folder, self._chunks[number]))

    def finish(self) -> str:
        """Verifies the copy, makes it durable, renames it to its target and returns that. ClusterError if damaged."""
        if holds(self._target, self._files):  # another node of this host or another run was first
            shutil.rmtree(self._part, ignore_errors=True)
            return str(self._target)
        if not holds(self._part, self._files):
            shutil.rmtree(self._part, ignore_errors=True)
            raise ClusterError(f"the copy at {self._target} does not verify; check this node's disk, then start again")
        for file in self._files:
            with (self._part / file.path).open("rb") as handle:
                os.fsync(handle.fileno())
        try:
            self._part.rename(self._target)
        except OSError:
            if not holds(self._target, self._files):
                raise
            shutil.rmtree(self._part)
        return str(self._target)

    def _adopt(self, living: Collection[str]) -> None:
        """Takes over the part of a node that is gone, by a rename: of two nodes of a host, only one gets it."""
        names = {node[:NODE_LETTERS] for node in living}
        for part in sorted(self._target.parent.glob(f".{self._target.name}.*.part")):
            if self._part.exists():
                return
            if part.name.split(".")[-2] not in names:
                try:
                    part.rename(self._part)
                except OSError:
                    continue


def hub_snapshots() -> Iterator[Path]:
    """The snapshots of all models in the Hugging Face cache of this node."""
    from huggingface_hub.constants import HF_HUB_CACHE

    yield from sorted(Path(HF_HUB_CACHE).glob("models--*/snapshots/*"))


def _same_weights(place: Path, files: Sequence[StagedFile]) -> bool:
    """Whether the folder has no further weight files. With them it is another model: an index may choose them."""
    ours = {file.path for file in files if file.path.endswith(".safetensors") and "/" not in file.path}
    return {path.name for path in place.glob("*.safetensors")} == ours


def as_array(data: bytes) -> NDArray[np.uint8]:
    """Bytes as an array of uint8, which the object store takes without a copy."""
    return np.frombuffer(data, dtype=np.uint8)

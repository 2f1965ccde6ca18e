"""Features that outlive a run: a folder of the head, from which later runs and other nodes fetch them.

An entry is a file of one picture's features and their checksum. Its place says all that it depends on: the tower and
what runs it (`tower_key`), and the picture's id, which is a digest of its pixels.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ...config.home import gemfleet_home
from ..base_check import gemma_config
from ..weight_files import StoredTensor, stored_tensors
from .tower import TOWER_NAMES, format_of

log = logging.getLogger("gemfleet.train")

FORMAT = 1  # raise it where the same tower would compute other bits
CHECKSUM_BYTES = 4
FULL = 0.95  # a disk of which more is used gets no further entries
LEFT_AFTER_SHRINKING = 0.9  # of the limit
LOOKS = 16  # so many times, while the limit's worth of entries is added, the folder's size is looked at
BYTES_READ = 1 << 22
PARTIAL = ".new-"


@dataclass(frozen=True)
class Entry:
    """used_at: seconds since the epoch"""

    path: Path
    bytes: int
    used_at: float


class FeatureFolder:
    """A `FeatureKeeper` on this machine's disk. Several processes may use one folder at the same time.

    limit_bytes: above it, those that were not used for longest go
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._added = limit_bytes  # so that the first entry looks at the folder's size

    def fetch(self, key: str, ids: Sequence[int]) -> dict[int, bytes]:
        found = {identity: self._read(self.folder / key / str(identity)) for identity in ids}
        return {identity: content for identity, content in found.items() if content is not None}

    def put(self, key: str, made: Mapping[int, bytes]) -> None:
        try:
            (self.folder / key).mkdir(parents=True, exist_ok=True)
            disk = shutil.disk_usage(self.folder)
            if disk.used > FULL * disk.total:
                return
            for identity, content in made.items():
                self._write(self.folder / key / str(identity), content)
        except OSError as error:
            log.warning("the features of pictures are not kept for other runs: %s", error)
        self._added += sum(map(len, made.values()))
        if self._added * LOOKS > self.limit_bytes:
            self._added = 0
            self._shrink()

    def entries(self) -> list[Entry]:
        """All features, those that were not used for longest first."""
        found = []
        for path in self.folder.glob("*/*"):
            with suppress(OSError):
                seen = path.stat()
                found.append(Entry(path, seen.st_size, seen.st_mtime))
        return sorted(found, key=lambda one: one.used_at)

    def remove(self, entries: Sequence[Entry]) -> None:
        for one in entries:
            with suppress(OSError):
                one.path.unlink()
        for place in self.folder.glob("*"):
            with suppress(OSError):  # it is not empty
                place.rmdir()

    def _shrink(self) -> None:
        self.remove(list(_beyond(self.entries(), self.limit_bytes)))

    def _read(self, path: Path) -> bytes | None:
        with suppress(OSError):
            content = path.read_bytes()
            whole, checksum = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
            if _checksum(whole) == checksum:
                os.utime(path)
                return whole
        return None

    def _write(self, path: Path, content: bytes) -> None:
        """The file appears whole or not at all."""
        descriptor, name = tempfile.mkstemp(prefix=PARTIAL, dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content + _checksum(content))
            os.replace(name, path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise


def feature_folder(limit_bytes: int = 0) -> FeatureFolder:
    """The features that this head keeps. The folder need not exist."""
    return FeatureFolder(gemfleet_home() / "cache" / "features", limit_bytes)


def unused_since(entries: Sequence[Entry], days: float) -> list[Entry]:
    """Those that no run has used for so many days."""
    return [one for one in entries if one.used_at <= time.time() - days * 86_400]


def tower_key(folder: Path, dtype: torch.dtype, device: torch.device) -> str:
    """A name for all that a picture's features depend on besides its pixels, to the last bit.

    folder: of a checked multimodal model, whose tower is read
    """
    config = gemma_config(folder)
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    import transformers

    facts = FORMAT, dtype, device_name, torch.__version__, transformers.__version__, format_of(folder)
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=16)
    digest.update(repr((config.vision_config.to_dict(), config.mm_tokens_per_image)).encode())
    for name, tensor in sorted(stored_tensors(folder).items()):
        if name.startswith(TOWER_NAMES):
            digest.update(f"{name} {tensor.dtype} {tensor.shape} ".encode())
            for part in _content(tensor):
                digest.update(part)
    return digest.hexdigest()


def _content(tensor: StoredTensor) -> Iterator[bytes]:
    with tensor.file.open("rb") as file:
        file.seek(tensor.start)
        for left in range(tensor.nbytes, 0, -BYTES_READ):
            yield file.read(min(left, BYTES_READ))


def _beyond(entries: Sequence[Entry], limit: int) -> Iterator[Entry]:
    """The first ones, whose going leaves less than the limit; none if all are within it."""
    held = sum(one.bytes for one in entries)
    if held <= limit:
        return
    for one in entries:
        if held <= LEFT_AFTER_SHRINKING * limit:
            return
        held -= one.bytes
        yield one


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(CHECKSUM_BYTES, "little")

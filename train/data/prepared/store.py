"""Keeps tokenised data sets on the head, by content, so that later runs and resumes use them again.

Each set is a folder of plain arrays. It appears whole or not at all, and its checksums are compared before use: a
damaged one counts as absent.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ...config.home import gemfleet_home
from ...config.sections.data import DataSet
from ...interfaces import no_pictures
from ..digest import Digests
from ..packing import Ints, TokenBlock
from ..pictures.files import PictureFiles, unchanged
from ..pictures.pixel_file import PixelFile
from ..pictures.rows import home_of
from ..report import DataReport, Reason
from .key import FORMAT, set_key

ABOUT = "about.json"
FILES: dict[str, Any] = {
    "tokens": np.int32,
    "supervised": np.bool_,
    "lengths": np.int32,
    "digests": np.uint64,
    "pictures": np.int64,
    "picture_starts": np.int64,  # among the tokens of all examples
    "pixels": np.uint8,
    "pixel_ids": np.int64,
}
BYTES_READ = 1 << 22
TOKENS_PER_BLOCK = 4_000_000


@dataclass(frozen=True)
class Seen:
    """The pictures of a set. pixels: of each, once; None: it has none; files: from which they were read"""

    pixels: PixelFile | None
    files: PictureFiles


@dataclass(frozen=True)
class KeptSet:
    """One prepared set, for a list. used_at: seconds since the epoch"""

    key: str
    source: str
    examples: int
    tokens: int
    bytes: int
    used_at: float


class PreparedSet:
    """A prepared set whose files are open: they stay readable though the cache drops them meanwhile.

    pixels: of its pictures; None: it has none
    """

    def __init__(self, about: dict[str, Any], files: Mapping[str, BinaryIO], data: DataSet) -> None:
        self._files = files
        self.lengths: Ints = self._read("lengths", 0, about["examples"]).astype(np.int64)
        self.digests: Digests = self._read("digests", 0, about["examples"])
        self.report = _report_from(about["report"], data)
        self._pictures: Ints = self._read("pictures", 0, about["pictures"])
        self._starts: Ints = self._read("picture_starts", 0, about["pictures"])
        ids, size = self._read("pixel_ids", 0, about["pixel_ids"]), tuple(about["size"])
        self.pixels = PixelFile(files["pixels"], size, ids.tolist()) if len(ids) else None

    def blocks(self, tokens: int = TOKENS_PER_BLOCK) -> Iterator[TokenBlock]:
        """All examples in order, in blocks of about so many tokens. Only one block is in memory at a time."""
        ends = np.cumsum(self.lengths)
        first, begin = 0, 0
        while first < len(ends):
            last = max(first + 1, int(np.searchsorted(ends, begin + tokens, side="right")))
            end = int(ends[last - 1])
            offsets = np.concatenate([np.zeros(1, np.int64), ends[first:last] - begin])
            p0, p1 = np.searchsorted(self._starts, [begin, end])
            yield TokenBlock(
                self._read("tokens", begin, end - begin),
                self._read("supervised", begin, end - begin),
                offsets,
                self._pictures[p0:p1],
                self._starts[p0:p1] - begin,
            )
            first, begin = last, end

    def _read(self, name: str, first: int, count: int) -> NDArray[Any]:
        kind = np.dtype(FILES[name])
        content = os.pread(self._files[name].fileno(), count * kind.itemsize, first * kind.itemsize)
        return np.frombuffer(content, kind)

    def __del__(self) -> None:
        for name, file in self._files.items():
            if name != "pixels":  # whoever trains reads it on
                file.close()


class PreparedStore:
    """The prepared sets of this head. limit_bytes: the least recently used ones go when all are larger; 0: keep none"""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes

    def find(self, key: str, data: DataSet) -> PreparedSet | None:
        """The set with this key, if it is there and whole. data: the set as this run names it"""
        place = self.folder / key
        try:
            about = json.loads((place / ABOUT).read_text())
            if about.pop("checksum") != _checksum_of(about) or about["format"] != FORMAT:
                return None
            if not unchanged(about["files"], home_of(data)):
                return None
            files = {name: (place / name).open("rb") for name in FILES}
            if any(_checksum_of_file(files[name]) != about["checksums"][name] for name in FILES):
                return None
            os.utime(place / ABOUT)
            return PreparedSet(about, files, data)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None

    def save(
        self, key: str, blocks: Iterable[TokenBlock], digests: Digests, report: DataReport, seen: Seen | None = None
    ) -> None:
        """Keeps a set, unless it is there already or the disk refuses: a cache may fail, a run may not.

        digests: of all examples, in order; seen: its pictures. Those of an address are not kept: they may change
        """
        pixels = seen.pixels if seen else None
        if seen and (seen.files.fetched or (pixels and pixels.picture_bytes * len(pixels.ids) > self.limit_bytes)):
            return
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(prefix=".set-", dir=self.folder))
            try:
                about = _write(work, blocks, digests, report, pixels)
                about["files"] = seen.files.seen if seen else {}
                if about["bytes"] <= self.limit_bytes:
                    (work / ABOUT).write_text(json.dumps({**about, "checksum": _checksum_of(about)}))
                    shutil.rmtree(self.folder / key, ignore_errors=True)  # absent, or damaged
                    work.rename(self.folder / key)
            finally:
                shutil.rmtree(work, ignore_errors=True)
            self._shrink()

    @contextmanager
    def alone(self, key: str) -> Iterator[None]:
        """Waits until no other process on this machine prepares the set with this key, and keeps others waiting.

        So of runs that start at one moment, one tokenises, and the others find what it kept. The kernel frees the lock
        of a process that ends. Where the disk has no locks, each prepares for itself.
        """
        descriptor = -1
        try:
            with suppress(OSError):
                self.folder.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(self.folder / f".{key}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def kept(self) -> list[KeptSet]:
        """All sets, the least recently used first."""
        found = []
        for place in self.folder.glob(f"*/{ABOUT}"):
            with suppress(OSError, ValueError, KeyError):
                about = json.loads(place.read_text())
                found.append(
                    KeptSet(
                        place.parent.name,
                        about["source"],
                        about["examples"],
                        about["tokens"],
                        about["bytes"],
                        place.stat().st_mtime,
                    )
                )
        return sorted(found, key=lambda one: one.used_at)

    def clear(self) -> int:
        """Removes all sets. Returns their number."""
        found = self.kept()
        for one in found:
            self._remove(one.key)
        return len(found)

    def _shrink(self) -> None:
        found = self.kept()
        held = sum(one.bytes for one in found)
        for one in found:
            if held <= self.limit_bytes:
                return
            self._remove(one.key)
            held -= one.bytes

    def _remove(self, key: str) -> None:
        """Renames before it deletes, so no reader sees half a set."""
        gone = Path(tempfile.mkdtemp(prefix=".gone-", dir=self.folder))
        with suppress(OSError):
            (self.folder / key).rename(gone / key)
        shutil.rmtree(gone, ignore_errors=True)


@dataclass(frozen=True)
class PreparedCache:
    """The prepared sets that a run may use: a store, and the folder of the tokenizer that all its data goes through."""

    store: PreparedStore
    tokenizer_folder: Path

    def key(self, data: DataSet) -> str | None:
        """See `set_key`. None, too, if the configuration keeps nothing."""
        return set_key(data, self.tokenizer_folder) if self.store.limit_bytes else None

    def alone(self, key: str | None) -> AbstractContextManager[None]:
        """See `PreparedStore.alone`."""
        return nullcontext() if key is None else self.store.alone(key)

    def find(self, key: str | None, data: DataSet) -> PreparedSet | None:
        """See `PreparedStore.find`."""
        return None if key is None else self.store.find(key, data)

    def save(
        self, key: str | None, blocks: Iterable[TokenBlock], digests: Digests, report: DataReport, seen: Seen
    ) -> None:
        """See `PreparedStore.save`."""
        if key is not None:
            self.store.save(key, blocks, digests, report, seen)


def prepared_folder() -> Path:
    """Where this head keeps prepared sets. It need not exist."""
    return gemfleet_home() / "cache" / "data"


def prepared_cache(limit_bytes: int, tokenizer_folder: Path) -> PreparedCache:
    """The cache of this head."""
    return PreparedCache(PreparedStore(prepared_folder(), limit_bytes), tokenizer_folder)


def _write(
    folder: Path, blocks: Iterable[TokenBlock], digests: Digests, report: DataReport, pixels: PixelFile | None
) -> dict[str, Any]:
    """Writes the arrays, one block after the other. Returns what `about.json` says."""
    sums = dict.fromkeys(FILES, 0)
    counts = {"examples": 0, "tokens": 0, "pictures": 0, "bytes": 0}
    ids = pixels.ids if pixels else no_pictures()
    files = {name: (folder / name).open("wb") for name in FILES}
    try:
        for block in blocks:
            parts = {"tokens": block.tokens, "supervised": block.supervised, "lengths": block.lengths}
            parts |= {"pictures": block.pictures, "picture_starts": block.picture_starts + counts["tokens"]}
            counts["examples"] += len(block)
            counts["tokens"] += len(block.tokens)
            counts["pictures"] += len(block.pictures)
            _append(files, parts, sums, counts)
        _append(files, {"digests": digests, "pixel_ids": ids}, sums, counts)
        for identity in ids.tolist():
            assert pixels is not None
            _append(files, {"pixels": pixels.pixels(identity)}, sums, counts)
    finally:
        for file in files.values():
            file.close()
    told: dict[str, Any] = {"checksums": sums, "report": _report_to(report), "format": FORMAT, "source": report.source}
    return {**counts, **told, "pixel_ids": len(ids), "size": list(pixels.size) if pixels else [0, 0]}


def _append(
    files: Mapping[str, BinaryIO], parts: dict[str, NDArray[Any]], sums: dict[str, int], counts: dict[str, int]
) -> None:
    for name, values in parts.items():
        content = np.ascontiguousarray(values, FILES[name]).tobytes()
        files[name].write(content)
        sums[name] = zlib.crc32(content, sums[name])
        counts["bytes"] += len(content)


def _checksum_of(about: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(about, sort_keys=True).encode())


def _checksum_of_file(file: BinaryIO) -> int:
    found = 0
    file.seek(0)
    while content := file.read(BYTES_READ):
        found = zlib.crc32(content, found)
    return found


def _report_to(report: DataReport) -> dict[str, Any]:
    """What a report says of the rows themselves; how they are used is another run's own affair."""
    return {
        "format": report.format,
        "rows": report.rows,
        "examples": report.examples,
        "truncated": report.truncated,
        "left_out": {name: asdict(reason) for name, reason in report.left_out.items()},
        "notes": report.notes,
        "unused": sorted(report.unused),
    }


def _report_from(told: dict[str, Any], data: DataSet) -> DataReport:
    report = DataReport.of_set(data)
    report.format, report.rows, report.examples = told["format"], told["rows"], told["examples"]
    report.truncated, report.notes, report.unused = told["truncated"], list(told["notes"]), set(told["unused"])
    report.left_out = {name: Reason(**reason) for name, reason in told["left_out"].items()}
    return report

"""The store's disk: the commit protocol as plain file operations, without Ray.

    checkpoints/generation                                the newest attempt of the run
    checkpoints/.incoming-<step>-<generation>/<file>      files on their way, each written to `.<file>.part` and renamed
    checkpoints/.incoming-<step>-<generation>/.rank-0     what a rank says its files are, once it has sent them all
    checkpoints/checkpoint-<step>/manifest.json           committed

When all expected ranks have declared, every file is verified, the manifest is written, and the folder gets its final
name in one rename. Until then nothing that reads manifests can see it. All state is on the disk, so a restarted store
goes on.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import StaleGeneration, StoreError
from .manifest import MANIFEST_FILE, FileEntry, Manifest, checked_name, sha256_of, sync_folder, write_durably

INCOMING = re.compile(r"\.incoming-(?P<step>\d+)-(?P<generation>\d+)")
COMMITTED = re.compile(r"checkpoint-(?P<step>\d+)")


class CheckpointDisk:
    """Checkpoints of one run below `root`. Methods may be called from several threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._poisoned: dict[Path, str] = {}
        self._verified: dict[Path, FileEntry] = {}  # files on their way whose bytes on the disk were hashed
        self._resume_points: dict[int, tuple[Manifest | None, list[str]]] = {}

    @property
    def generation(self) -> int:
        path = self.root / "generation"
        return int(path.read_text()) if path.exists() else 0

    def begin_attempt(self) -> int:
        """A new generation: from now on older ones can write nothing, and what they left half-done is removed."""
        with self._lock:
            generation = self.generation + 1
            write_durably(self.root / "generation", str(generation).encode())
            self.sweep()
            return generation

    def sweep(self) -> list[str]:
        """Remove unfinished uploads of older generations, and checkpoint folders without manifest; returns their names.

        A late write of an older attempt may put a file back while its folder goes: what is left then goes next time.
        """
        removed = []
        for path in sorted(self.root.iterdir()):
            incoming, committed = INCOMING.fullmatch(path.name), COMMITTED.fullmatch(path.name)
            stale = incoming and int(incoming["generation"]) < self.generation
            if path.is_dir() and (stale or (committed and not (path / MANIFEST_FILE).exists())):
                shutil.rmtree(path, ignore_errors=True)
                removed.append(path.name)
        return removed

    def begin(self, step: int, generation: int, name: str) -> None:
        """Start a file, or start it again after an error: what arrived of it before is dropped."""
        part = self._part(step, generation, name)
        part.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)
        self._poisoned.pop(part, None)
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

    def finish(self, step: int, generation: int, entry: FileEntry) -> None:
        """The whole file was sent: check size and hash, make it durable, give it its name. May be repeated."""
        part = self._part(step, generation, entry.path)
        final = part.with_name(Path(entry.path).name)
        if part in self._poisoned:
            raise StoreError(f"the upload of {entry.path} failed before ({self._poisoned[part]}); it is not published")
        if not part.exists() and final.exists() and _matches(final, entry):
            return
        if entry.size == 0:
            part.touch()  # no chunk was ever sent
        if not part.exists() or not _matches(part, entry):
            raise StoreError(f"{entry.path} of checkpoint-{step} arrived incomplete or damaged; send it again")
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.rename(final)
        sync_folder(final.parent)
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
        completes it are kept in the manifest.
        """
        with self._lock:
            folder = self._incoming(step, generation)
            if (committed := self._committed(step)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                return committed
            folder.mkdir(parents=True, exist_ok=True)
            said = json.dumps([asdict(entry) for entry in entries]).encode()
            write_durably(folder / f".rank-{rank}", said)
            if not all((folder / f".rank-{r}").exists() for r in expected_ranks):
                return None
            return self._commit(step, generation, folder, expected_ranks, metrics or {})

    def manifests(self) -> list[Manifest]:
        """Committed checkpoints by ascending step; a folder whose manifest cannot be read is left out."""
        return [found for _, found in self._read_all() if isinstance(found, Manifest)]

    def newest_verified(self) -> tuple[Manifest | None, list[str]]:
        """The newest checkpoint whose every file verifies, and a sentence for each newer one that is damaged."""
        damaged: list[str] = []
        for path, found in reversed(self._read_all()):
            if isinstance(found, Manifest):
                try:
                    found.verify(path)
                except StoreError as error:
                    damaged.append(f"{path.name}: {error}")
                else:
                    return found, damaged
            else:
                damaged.append(f"{path.name}: {found}")
        return None, damaged

    def verify_all(self) -> list[tuple[str, str | None]]:
        """Each committed folder by ascending step, with what is wrong with it; None for one that is whole."""
        verdicts: list[tuple[str, str | None]] = []
        for path, found in self._read_all():
            problem = None
            try:
                if isinstance(found, Manifest):
                    found.verify(path)
                else:
                    problem = found
            except StoreError as error:
                problem = str(error)
            verdicts.append((path.name, problem))
        return verdicts

    def resume_point(self, generation: int) -> tuple[Manifest | None, list[str]]:
        """`newest_verified`, and the same answer to every rank of one attempt."""
        with self._lock:
            self._incoming(0, generation)  # refuses an attempt that is over
            if generation not in self._resume_points:
                self._resume_points = {generation: self.newest_verified()}
            return self._resume_points[generation]

    def retain(self, keep: int, best_of: str | None = None) -> list[int]:
        """Remove all but the newest `keep` checkpoints; returns the steps removed.

        The newest that verifies always stays, and the one with the least metric `best_of`, where any has it.
        """
        with self._lock:
            manifests = self.manifests()
            doomed = doomed_steps(manifests, keep, best_of)
            if doomed:
                newest, _ = self.newest_verified()
                doomed = [step for step in doomed if newest is None or step != newest.step]
            for step in doomed:
                (self.folder(step) / MANIFEST_FILE).unlink()
                shutil.rmtree(self.folder(step))
            return doomed

    def read(self, step: int, name: str, offset: int, size: int) -> bytes:
        """At most `size` bytes of a committed file. StoreError when it is not there, or not in the store."""
        try:
            with self._inside(self.folder(step) / checked_name(name)).open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise StoreError(f"{name} of checkpoint-{step} cannot be read on the head: {error.strerror}") from error

    def folder(self, step: int) -> Path:
        return self.root / f"checkpoint-{step}"

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
        write_durably(folder / MANIFEST_FILE, manifest.to_json().encode())
        if self.folder(step).exists():  # a damaged one of the same step, or `declare` would have returned it
            shutil.rmtree(self.folder(step))
        folder.rename(self.folder(step))
        sync_folder(self.root)
        for rank in ranks:  # only now: a store that died before the rename must find again what each rank has said
            (self.folder(step) / f".rank-{rank}").unlink()
        return manifest

    def _committed(self, step: int) -> Manifest | None:
        try:
            manifest = Manifest.read(self.folder(step))
            manifest.verify(self.folder(step))
        except StoreError:
            return None
        return manifest

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

    def _read_all(self) -> list[tuple[Path, Manifest | str]]:
        """Each committed folder by ascending step, with its manifest or with what is wrong with that."""
        found: list[tuple[Path, Manifest | str]] = []
        folders = [path for path in self.root.iterdir() if COMMITTED.fullmatch(path.name)]
        for path in sorted(folders, key=lambda path: int(path.name.removeprefix("checkpoint-"))):
            try:
                found.append((path, Manifest.read(path)))
            except StoreError as error:
                found.append((path, str(error)))
        return found


def doomed_steps(manifests: Sequence[Manifest], keep: int, best_of: str | None) -> list[int]:
    """Which of these checkpoints, by ascending step, are neither among the newest `keep` nor the best by a metric."""
    measured = [m for m in manifests if best_of is not None and best_of in m.metrics]
    best = min(measured, key=lambda m: m.metrics[best_of or ""], default=None)
    old = manifests[: max(0, len(manifests) - max(1, keep))]
    return [m.step for m in old if best is None or m.step != best.step]


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _matches(path: Path, entry: FileEntry) -> bool:
    return path.stat().st_size == entry.size and sha256_of(path) == entry.sha256

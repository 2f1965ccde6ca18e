"""The commit protocol of checkpoints, as file operations on the head's disk, without Ray.

    checkpoints/generation                                the newest attempt of the run
    checkpoints/.incoming-<step>-<generation>/<file>      files on their way, each first as `.<file>.part`
    checkpoints/.incoming-<step>-<generation>/.rank-0     what a rank says its files are, once it has sent them all
    checkpoints/checkpoint-<step>/manifest.json           committed

When all expected ranks have declared their files and every file is verified, the shelf takes the files over, the
manifest last: a folder by one rename, an object store by writing it. Until then no reader of manifests sees the
checkpoint. All state is on the disk, so a restarted store goes on.
"""

from __future__ import annotations

import json
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

from ..durable import remove_folder, write_durably
from ..errors import StaleGeneration, StoreError
from .arrivals import Arrivals, Upload
from .folder_shelf import FolderShelf
from .manifest import FileEntry, Manifest, checked_name
from .shelf import Shelf

INCOMING = re.compile(r"\.incoming-(?P<step>\d+)-(?P<generation>\d+)")


class CheckpointDisk:
    """The checkpoints of one run below `root`. Several threads may call its methods.

    Methods that take a `generation` raise StaleGeneration once a newer attempt has begun.
    """

    def __init__(self, root: Path, shelf: Shelf | None = None) -> None:
        """`shelf`: where committed checkpoints rest; None for `root` itself."""
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.shelf = shelf or FolderShelf(root)
        self._lock = threading.RLock()
        self._arrivals = Arrivals()
        self._committed: int | None = None  # the attempt of the newest checkpoint that this process committed
        self._resume_points: dict[int, tuple[Manifest | None, list[str]]] = {}

    @property
    def generation(self) -> int:
        """The newest attempt. When the file that names it is damaged: the newest attempt that left anything else."""
        try:
            return int((self.root / "generation").read_text())
        except FileNotFoundError:
            return 0
        except (OSError, ValueError):
            return self._newest_seen()

    def begin_attempt(self) -> int:
        """Begins a new generation. Older ones can write nothing from now on, and what they left half-done goes."""
        with self._lock:
            generation = max(self.generation, self._newest_seen()) + 1
            write_durably(self.root / "generation", str(generation).encode())
            self.sweep()
            return generation

    def sweep(self) -> list[str]:
        """Removes unfinished uploads of older generations, and checkpoints without manifest. Returns their names.

        It renames each folder before it deletes anything in it. So a store of an older attempt that commits this very
        checkpoint was either faster, or finds that the folder is gone.
        """
        now = self.generation
        stale = self._incoming_folders(lambda step, generation: generation < now)
        for path in stale:
            with suppress(OSError):
                remove_folder(path)
        return [path.name for path in stale] + self.shelf.sweep()

    def begin(self, step: int, generation: int, name: str) -> None:
        """See `Arrivals.begin`."""
        self._arrivals.begin(self._upload(step, generation, name))

    def write(self, step: int, generation: int, name: str, offset: int, chunk: NDArray[np.uint8]) -> None:
        """See `Arrivals.write`."""
        self._arrivals.write(self._upload(step, generation, name), offset, chunk)

    def receive(self, step: int, generation: int, name: str, size: int, connection: socket.socket) -> None:
        """See `Arrivals.receive`."""
        self._arrivals.receive(self._upload(step, generation, name), size, connection)

    def finish(self, step: int, generation: int, entry: FileEntry, check: str | None = None) -> None:
        """See `Arrivals.finish`."""
        self._arrivals.finish(self._upload(step, generation, entry.path), entry, check)

    def declare(
        self,
        step: int,
        generation: int,
        rank: int,
        entries: Sequence[FileEntry],
        expected_ranks: Sequence[int],
        metrics: Mapping[str, float] | None = None,
    ) -> Manifest | None:
        """Notes that `rank` has sent all its files. Returns the manifest if that committed the checkpoint.

        May be repeated. A step that is committed already, by this attempt or an older one, stays as it is. The manifest
        keeps the `metrics` of the rank that commits. None, too, when a newer attempt began meanwhile and removed the
        files.
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
        """As `Shelf.newest_verified`, with the same answer for all ranks of one attempt."""
        with self._lock:
            self._refuse_older(0, generation)
            if generation not in self._resume_points:
                self._resume_points = {generation: self.shelf.newest_verified()}
            return self._resume_points[generation]

    def retain(self, keep: int, best_of: str | None = None) -> list[int]:
        """See `Shelf.retain`. Removes nothing when this store's last commit was for an older attempt: the newer one may
        read the checkpoints."""
        with self._lock:
            if self._committed not in (None, self.generation):
                return []
            return self.shelf.retain(keep, best_of)

    def read(self, step: int, name: str, offset: int, size: int) -> bytes:
        """At most `size` bytes of a committed file. StoreError when it is not there, or lies outside the store."""
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
        if not all(self._arrivals.take_verified(folder / entry.path, entry) for entry in files):
            manifest.verify(folder)  # a restarted store did not see them arrive
        self.shelf.publish(manifest, folder)
        self._committed = generation
        for path in self._incoming_folders(lambda s, g: g == generation and s <= step):
            shutil.rmtree(path, ignore_errors=True)  # of ranks that gave up: each sends its checkpoints in order
        return manifest

    def _incoming_folders(self, wanted: Callable[[int, int], bool]) -> list[Path]:
        """Folders of unfinished uploads whose step and generation are wanted."""
        matches = [(path, INCOMING.fullmatch(path.name)) for path in sorted(self.root.iterdir())]
        return [path for path, match in matches if match and wanted(int(match["step"]), int(match["generation"]))]

    def _newest_seen(self) -> int:
        """The newest attempt that committed a checkpoint or has files on their way."""
        arriving = [INCOMING.fullmatch(path.name) for path in self.root.iterdir()]
        seen = [int(match["generation"]) for match in arriving if match]
        return max([0, *seen, *(manifest.generation for manifest in self.shelf.manifests())])

    def _incoming(self, step: int, generation: int) -> Path:
        self._refuse_older(step, generation)
        return self.root / f".incoming-{step}-{generation}"

    def _refuse_older(self, step: int, generation: int) -> None:
        if generation != self.generation:
            raise StaleGeneration(
                f"attempt {generation} may not write checkpoint-{step}: attempt {self.generation} of this run has begun"
            )

    def _upload(self, step: int, generation: int, name: str) -> Upload:
        final = self._incoming(step, generation) / checked_name(name)
        return Upload(step, name, self._inside(final.with_name(f".{final.name}.part")))

    def _inside(self, path: Path) -> Path:
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise StoreError(f"{path.name} lies behind a link that leaves the checkpoint store; remove the link")
        return path

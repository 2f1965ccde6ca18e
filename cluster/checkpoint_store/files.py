"""The head's side of `ray_snapshots.py`: small files of Ray Train, each replaced in one rename. Imports no pyarrow."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

from ..durable import TEMPORARY, write_durably
from ..errors import StoreError

FileInfo = tuple[str, str, int, float]  # path relative to the root, "file" | "directory" | "absent", size, mtime


class StoredFiles:
    """File operations below `root`. Every path is relative to it; StoreError for one that leaves it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def info(self, paths: list[str]) -> list[FileInfo]:
        """What lies at each path."""
        return [self._info(self._resolve(path)) for path in paths]

    def list(self, folder: str, recursive: bool, allow_absent: bool) -> list[FileInfo]:
        """What lies in a folder, by name. FileNotFoundError when the folder is absent and may not be."""
        base = self._resolve(folder)
        if not base.is_dir():
            if allow_absent:
                return []
            raise FileNotFoundError(folder)
        found = sorted(base.rglob("*") if recursive else base.iterdir())
        return [self._info(path) for path in found if not (path.name.startswith(".") and path.suffix == TEMPORARY)]

    def read(self, path: str) -> bytes:
        """The whole content of a file."""
        return self._resolve(path).read_bytes()

    def replace(self, path: str, content: bytes) -> None:
        """Writes a file. It holds the old or the new content whole, whatever happens meanwhile."""
        target = self._resolve(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_durably(target, content)

    def make_folder(self, path: str) -> None:
        """Makes a folder and those above it. One that is there stays."""
        self._resolve(path).mkdir(parents=True, exist_ok=True)

    def remove(self, path: str, contents_only: bool = False) -> None:
        """Removes a file or a whole folder. An absent one is removed already. The root itself stays."""
        target = self._resolve(path)
        contents_only = contents_only or target == self.root.resolve()
        if target.is_dir():
            shutil.rmtree(target)
            if contents_only:
                target.mkdir()
        else:
            target.unlink(missing_ok=True)

    def move(self, source: str, destination: str) -> None:
        """Renames a file or folder. A repeated move, whose source is gone already, changes nothing."""
        origin, target = self._resolve(source), self._resolve(destination)
        if origin.exists() or not target.exists():
            origin.replace(target)

    def copy(self, source: str, destination: str) -> None:
        """Copies one file."""
        self.replace(destination, self.read(source))

    def _resolve(self, path: str) -> Path:
        resolved = (self.root / path.lstrip("/")).resolve()
        if not resolved.is_relative_to(self.root.resolve()):
            raise StoreError(f"the path {path!r} leaves the run's folder")
        return resolved

    def _info(self, path: Path) -> FileInfo:
        name = path.relative_to(self.root.resolve()).as_posix()
        try:
            status = path.stat()
        except OSError:
            return name, "absent", 0, 0.0
        kind, size = ("directory", 0) if stat.S_ISDIR(status.st_mode) else ("file", status.st_size)
        return name, kind, size, status.st_mtime

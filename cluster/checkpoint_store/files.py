"""The small files Ray Train keeps beside a run (its marker and snapshots), on the head, each replaced in one rename."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

from ..errors import StoreError
from .manifest import TEMPORARY, write_durably

FileInfo = tuple[str, str, int, float]  # path relative to the root, "file" | "directory" | "absent", size, mtime


class StoredFiles:
    """Plain file operations below `root`; every path is relative to it and cannot leave it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def info(self, paths: list[str]) -> list[FileInfo]:
        return [self._info(self._resolve(path)) for path in paths]

    def list(self, folder: str, recursive: bool, allow_absent: bool) -> list[FileInfo]:
        base = self._resolve(folder)
        if not base.is_dir():
            if allow_absent:
                return []
            raise FileNotFoundError(folder)
        found = sorted(base.rglob("*") if recursive else base.iterdir())
        return [self._info(path) for path in found if not (path.name.startswith(".") and path.suffix == TEMPORARY)]

    def read(self, path: str) -> bytes:
        return self._resolve(path).read_bytes()

    def replace(self, path: str, content: bytes) -> None:
        """The file holds the old or the new content whole, whatever happens meanwhile."""
        target = self._resolve(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_durably(target, content)

    def make_folder(self, path: str) -> None:
        self._resolve(path).mkdir(parents=True, exist_ok=True)

    def remove(self, path: str, contents_only: bool = False) -> None:
        """A file or a whole folder; an absent one is removed already. The root itself stays."""
        target = self._resolve(path)
        contents_only = contents_only or target == self.root.resolve()
        if target.is_dir():
            shutil.rmtree(target)
            if contents_only:
                target.mkdir()
        else:
            target.unlink(missing_ok=True)

    def move(self, source: str, destination: str) -> None:
        """A repeated move, whose source is gone because it happened already, changes nothing."""
        origin, target = self._resolve(source), self._resolve(destination)
        if origin.exists() or not target.exists():
            origin.replace(target)

    def copy(self, source: str, destination: str) -> None:
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

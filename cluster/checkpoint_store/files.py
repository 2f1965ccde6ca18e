"""The small files Ray Train keeps beside a run (its marker and snapshots), on the head, each replaced in one rename."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..errors import StoreError
from .manifest import write_durably

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
        return [self._info(path) for path in sorted(base.rglob("*") if recursive else base.iterdir())]

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
        """A file or a whole folder; an absent one is removed already."""
        target = self._resolve(path)
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
        name = str(path.relative_to(self.root.resolve())) if path != self.root else ""
        if not path.exists():
            return name, "absent", 0, 0.0
        status = path.stat()
        return (name, "directory", 0, status.st_mtime) if path.is_dir() else (name, "file", status.st_size, status.st_mtime)

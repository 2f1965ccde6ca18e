"""Committed checkpoints in a folder of the head's disk or of a mounted filesystem; the commit is one rename."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..errors import StoreError
from .manifest import MANIFEST_FILE, Manifest, sync_folder, write_durably
from .shelf import COMMITTED, Fingerprint, Shelf


class FolderShelf(Shelf):
    """Checkpoints as `root/checkpoint-<step>`. What is published must lie on the same filesystem."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def folder(self, step: int) -> Path:
        return self.root / f"checkpoint-{step}"

    def steps(self) -> list[int]:
        found = (COMMITTED.fullmatch(path.name) for path in self.root.iterdir()) if self.root.is_dir() else ()
        return sorted(int(match["step"]) for match in found if match)

    def manifest(self, step: int) -> Manifest:
        return Manifest.read(self.folder(step))

    def verify(self, manifest: Manifest) -> None:
        manifest.verify(self.folder(manifest.step))

    def fingerprint(self, manifest: Manifest) -> Fingerprint:
        try:
            status = [(self.folder(manifest.step) / entry.path).lstat() for entry in manifest.files]
        except OSError as error:
            raise StoreError(f"{error.filename} cannot be read: {error.strerror}") from error
        return tuple((found.st_size, found.st_mtime_ns) for found in status)

    def publish(self, manifest: Manifest, folder: Path) -> None:
        target = self.folder(manifest.step)
        write_durably(folder / MANIFEST_FILE, manifest.to_json().encode())
        if target.exists():
            shutil.rmtree(target)
        folder.rename(target)
        sync_folder(self.root)
        for path in target.glob(".rank-*"):  # only now: a store that died before the rename must find them again
            path.unlink()
        self.remember(manifest)

    def remove(self, step: int) -> None:
        (self.folder(step) / MANIFEST_FILE).unlink(missing_ok=True)
        shutil.rmtree(self.folder(step), ignore_errors=True)

    def sweep(self) -> list[str]:
        removed = []
        for step in self.steps():
            if self.folder(step).is_dir() and not (self.folder(step) / MANIFEST_FILE).exists():
                shutil.rmtree(self.folder(step), ignore_errors=True)
                removed.append(f"checkpoint-{step}")
        return removed

    def probe(self) -> None:
        write_durably(self.root / ".probe", b"")
        (self.root / ".probe").unlink()

    def at_hand(self, step: int) -> Path:
        return self.folder(step)

    def location(self, step: int) -> str:
        return str(self.folder(step))

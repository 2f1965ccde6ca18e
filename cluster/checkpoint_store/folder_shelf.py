"""Committed checkpoints in a folder of the head's disk or of a mounted filesystem; the commit is one rename."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from ..errors import StoreError
from .manifest import MANIFEST_FILE, REMOVED, Manifest, remove_folder, sync_folder, write_durably
from .shelf import COMMITTED, Fingerprint, Shelf


class FolderShelf(Shelf):
    """Checkpoints as `root/checkpoint-<step>`. What is published must lie on the same filesystem."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def folder(self, step: int) -> Path:
        return self.root / f"checkpoint-{step}"

    def steps(self) -> list[int]:
        try:
            found = [COMMITTED.fullmatch(name) for name in os.listdir(self.root)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"{self.root} cannot be listed ({error.strerror})") from error
        return sorted(int(match["step"]) for match in found if match)

    def manifest(self, step: int) -> Manifest:
        return Manifest.read(self.folder(step), step)

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
        remove_folder(target)
        folder.rename(target)
        sync_folder(self.root)
        for path in target.glob(".rank-*"):  # only now: a store that died before the rename must find them again
            path.unlink()
        self.remember(manifest)

    def remove(self, step: int) -> None:
        try:
            remove_folder(self.folder(step))
        except OSError as error:
            raise StoreError(f"{self.folder(step)} cannot be removed ({error.strerror})") from error

    def sweep(self) -> list[str]:
        for path in self.root.glob(f"{REMOVED}*"):  # whoever removed it was killed meanwhile
            shutil.rmtree(path, ignore_errors=True)
        return [f"checkpoint-{step}" for step in self.steps() if self._sweep(step)]

    def _sweep(self, step: int) -> bool:
        """Away with a folder that has no manifest; one that cannot be read may have one, and stays."""
        folder = self.folder(step)
        if not _lacks_manifest(folder):
            return False
        doomed = folder.with_name(f"{REMOVED}{folder.name}-{secrets.token_hex(4)}")
        with suppress(OSError):
            folder.rename(doomed)
            if not _lacks_manifest(doomed):  # another store put a whole one there between the two looks
                doomed.rename(folder)
                return False
        shutil.rmtree(doomed, ignore_errors=True)
        return True

    def probe(self) -> None:
        write_durably(self.root / ".probe", b"")
        (self.root / ".probe").unlink()

    def at_hand(self, step: int) -> Path:
        return self.folder(step)

    def location(self, step: int) -> str:
        return str(self.folder(step))


def _lacks_manifest(folder: Path) -> bool:
    try:
        os.stat(folder / MANIFEST_FILE)
    except FileNotFoundError:
        return folder.is_dir()
    except OSError:
        return False
    return False

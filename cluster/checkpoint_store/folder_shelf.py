"""Committed checkpoints in a folder of the head's disk or of a mounted filesystem. A rename commits them."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from ..durable import REMOVED, remove_folder, set_aside, sync_folder, write_durably
from ..errors import StoreError
from .manifest import MANIFEST_FILE, Manifest
from .shelf import COMMITTED, Fingerprint, Shelf


class FolderShelf(Shelf):
    """Checkpoints as `root/checkpoint-<step>`. The folder that `publish` gets lies on the same filesystem."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def folder(self, step: int) -> Path:
        """Where the checkpoint of this step lies, if it is there."""
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
        for path in target.glob(".rank-*"):  # not before: a store that dies before the rename needs them again
            path.unlink()
        self.remember(manifest)

    def remove(self, step: int) -> None:
        try:
            remove_folder(self.folder(step))
        except OSError as error:
            raise StoreError(f"{self.folder(step)} cannot be removed ({error.strerror})") from error

    def sweep(self) -> list[str]:
        for path in self.root.glob(f"{REMOVED}*"):  # the process that removed it was killed midway
            shutil.rmtree(path, ignore_errors=True)
        return [f"checkpoint-{step}" for step in self.steps() if self._sweep(step)]

    def _sweep(self, step: int) -> bool:
        """Removes a folder without a manifest. A folder that cannot be read may have one, and stays."""
        folder = self.folder(step)
        if not _lacks_manifest(folder):
            return False
        with suppress(OSError):
            doomed = set_aside(folder)
            if doomed is not None and not _lacks_manifest(doomed):  # another store just put a whole one there
                doomed.rename(folder)
                return False
            if doomed is not None:
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

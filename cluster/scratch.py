"""Temporary folders that go with their process. The next process of the kind removes what a killed one left."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK_FILE = "lock"


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """An empty folder for this process alone, in the system's temporary folder. It goes when the block ends.

    First it removes folders with the same prefix that killed processes left.
    """
    parent = Path(tempfile.gettempdir())
    sweep(parent, prefix)
    unnamed = Path(tempfile.mkdtemp(prefix="gemfleet-new-"))
    lock = os.open(unnamed / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with suppress(OSError):  # the filesystem has no locks; then nothing is ever swept there
            fcntl.flock(lock, fcntl.LOCK_EX)
        folder = parent / f"{prefix}{unnamed.name.removeprefix('gemfleet-new-')}"
        unnamed.rename(folder)  # from here on, a folder of this name with a free lock is nobody's
        try:
            (folder / "work").mkdir()
            yield folder / "work"
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def sweep(parent: Path, prefix: str) -> None:
    """Removes folders whose process is gone. Folders of other users, links and folders without a lock stay."""
    for folder in parent.glob(f"{prefix}*"):
        with suppress(OSError):
            status = folder.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and _is_free(folder / LOCK_FILE):
                shutil.rmtree(folder, ignore_errors=True)


def _is_free(lock: Path) -> bool:
    descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True

"""Temporary folders that go with their process, and, should that be killed, at the next start of one of their kind."""

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
    """An empty folder in the system's temporary one, for this process alone. Those that killed processes left under the
    same prefix are removed first."""
    parent = Path(tempfile.gettempdir())
    sweep(parent, prefix)
    unnamed = Path(tempfile.mkdtemp(prefix="gemfleet-new-"))
    lock = os.open(unnamed / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with suppress(OSError):  # a filesystem without locks: then nothing is ever swept there
            fcntl.flock(lock, fcntl.LOCK_EX)
        folder = parent / f"{prefix}{unnamed.name.removeprefix('gemfleet-new-')}"
        unnamed.rename(folder)  # from here on a folder of this name whose lock is free is nobody's
        try:
            (folder / "work").mkdir()
            yield folder / "work"
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def sweep(parent: Path, prefix: str) -> None:
    """Remove the folders of processes that are gone. Folders of other users, links, and what has no lock stay."""
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

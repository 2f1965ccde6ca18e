"""Closes what gemfleet writes to other users, whatever the umask says: configurations, logs and weights."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PRIVATE_UMASK = 0o077
_users_umask: int | None = None


def keep_private() -> None:
    """From now on this process makes folders with mode 0700 and files with 0600. That includes its libraries."""
    global _users_umask
    before = os.umask(PRIVATE_UMASK)
    if _users_umask is None:
        _users_umask = before


@contextmanager
def as_the_user_has_it() -> Iterator[None]:
    """Brings back the umask that the process started with, for files that a person asked to have elsewhere."""
    before = os.umask(PRIVATE_UMASK if _users_umask is None else _users_umask)
    try:
        yield
    finally:
        os.umask(before)


def private_folder(folder: Path) -> None:
    """Makes the folder when missing, and closes it to other users.

    A folder of another user, a person's home, and a folder that all users write to stay as they are.
    """
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    if is_open(folder) and folder.resolve() not in (Path("/"), Path.home()):
        facts = folder.stat()
        if facts.st_uid == os.geteuid() and not facts.st_mode & stat.S_ISVTX:
            with suppress(OSError):
                folder.chmod(0o700)


def private_file(path: Path) -> None:
    """Makes an empty file when missing, and closes it to other users if it is ours.

    It never opens a file that is there: closing it again would lose SQLite's locks.
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    if is_open(path) or path.stat().st_mode & 0o600 != 0o600:
        with suppress(OSError):
            path.chmod(0o600)


def is_open(path: Path) -> bool:
    """Whether other users may do anything with this file or folder."""
    return bool(path.stat().st_mode & 0o077)

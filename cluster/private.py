"""What gemfleet keeps on a machine is its user's alone: configurations, logs and weights, whatever the umask says."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PRIVATE_UMASK = 0o077
_users_umask: int | None = None


def keep_private() -> None:
    """From now on, folders that this process makes are 0700 and files 0600, also those of libraries."""
    global _users_umask
    before = os.umask(PRIVATE_UMASK)
    if _users_umask is None:
        _users_umask = before


@contextmanager
def as_the_user_has_it() -> Iterator[None]:
    """For what a person asked to have elsewhere: the umask that the process was started with."""
    before = os.umask(PRIVATE_UMASK if _users_umask is None else _users_umask)
    try:
        yield
    finally:
        os.umask(before)


def private_folder(folder: Path) -> None:
    """Make the folder when missing, and close it to other users.

    A folder that is another user's, a person's own home, or one that all users write to stays as it is.
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
    """Make the file, empty, when missing, and close it to other users if it is ours.

    One that exists is never opened: SQLite's locks would be lost when it is closed.
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    if is_open(path) or path.stat().st_mode & 0o600 != 0o600:
        with suppress(OSError):
            path.chmod(0o600)


def is_open(path: Path) -> bool:
    """Whether other users may do anything with it."""
    return bool(path.stat().st_mode & 0o077)

"""Files and folders that are whole or not there, whatever stops the process or the machine."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from pathlib import Path

TEMPORARY = ".tmp"  # ends the name of a file on its way in
REMOVED = ".removed-"  # begins the name of a folder on its way out


def write_durably(path: Path, content: bytes) -> None:
    """Replaces `path` by `content`. It holds the old or the new content whole, also when the machine stops midway."""
    temporary = path.with_name(f".{path.name}.{threading.get_ident()}{TEMPORARY}")  # two threads never share one
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes names that were created or renamed in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_folder(folder: Path) -> bool:
    """Renames a folder, then deletes it. Returns whether it was there.

    Whoever looks sees the whole folder or none. Whoever would take the folder over, as a store of an older attempt may,
    comes too late or was first. OSError when it cannot be renamed. What cannot be deleted stays under the new name for
    the next sweep.
    """
    doomed = set_aside(folder)
    if doomed is None:
        return False
    shutil.rmtree(doomed, ignore_errors=True)
    return True


def set_aside(folder: Path) -> Path | None:
    """Renames a folder, or a link to one, before it is deleted. Returns its new path; None when it is not there."""
    doomed = folder.with_name(f"{REMOVED}{folder.name}-{secrets.token_hex(4)}")
    try:
        folder.rename(doomed)
    except FileNotFoundError:
        return None
    return doomed

"""The folders in which gemfleet keeps its files on this machine, and the compiler that it finds there."""

from __future__ import annotations

import os
import shutil
from functools import cache
from pathlib import Path


def gemfleet_home() -> Path:
    """$GEMFLEET_HOME, or ~/.gemfleet. The folder need not exist yet."""
    return Path(os.environ.get("GEMFLEET_HOME") or Path.home() / ".gemfleet").expanduser().absolute()


def open_as_umask_says(path: Path) -> None:
    """Gives a file or folder that a library made private the access that the umask grants."""
    umask = os.umask(0o077)
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def cache_folder(name: str) -> Path:
    """The folder `cache/<name>` of the home, which is made if it is missing."""
    folder = gemfleet_home() / "cache" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@cache
def cpp_compiler() -> str | None:
    """The path of CXX or g++; None if there is neither. It must be a g++, as torch's OpenMP is GNU's."""
    names = [os.environ.get("CXX"), "g++"]
    return next((path for name in names if name and (path := shutil.which(name))), None)

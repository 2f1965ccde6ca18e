"""What a configuration names: paths or hub ids, patterns as in `data/*.jsonl`, and small files."""

from __future__ import annotations

import glob
import re
from pathlib import Path

MAX_FILE_BYTES = 1 << 20
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def local_path(source: str) -> Path | None:
    """The path that a source is, if it exists or begins as paths do; None for anything else, such as a hub id."""
    path = Path(source).expanduser()
    return path if path.exists() or source.startswith((".", "/", "~")) else None


def is_pattern(source: str | Path) -> bool:
    """Whether a text has signs of a pattern and is not itself the name of something that exists."""
    return glob.has_magic(str(source)) and not Path(source).expanduser().exists()


def found_at(source: str | Path) -> list[Path]:
    """The path itself if it exists, else what fits it as a pattern, sorted; hidden files fit none. It may be empty."""
    path = Path(source).expanduser()
    if path.exists():
        return [path]
    return sorted(map(Path, glob.glob(str(path), recursive=True))) if is_pattern(path) else []


def folder_of(source: str) -> str:
    """The part of a path before its first part that is a pattern."""
    parts = Path(source).parts
    return str(Path(*parts[: next((n for n, part in enumerate(parts) if glob.has_magic(part)), len(parts))]))


def read_small_file(path: str, beside: Path | None, give: str, what: str) -> bytes:
    """The content of a file. The working directory comes first, then `beside`, the configuration's folder.

    Raises ValueError, whose message says what is wrong with the file. give: what the field takes; what: the content
    """
    file = Path(path).expanduser()
    if not file.exists() and beside is not None:
        file = beside / path
    if not file.is_file():
        raise ValueError(f"{path!r} is not a file; give {give}")
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path!r} cannot be read ({error.strerror or error}); check its permissions") from None
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"{path!r} is larger than 1 MiB; give {what}")
    return content

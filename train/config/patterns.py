"""Patterns of file names, as in `data/*.jsonl` or `data/**/part-?.jsonl.gz`."""

from __future__ import annotations

import glob
from pathlib import Path


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

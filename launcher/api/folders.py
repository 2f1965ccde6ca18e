"""Checks that a path of the head, and all links in it, stay below the allowed folders."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

MOST_ENTRIES = 100_000
LARGEST_LIST_BYTES = 32 * 2**20
LISTS = frozenset({"state.json", "dataset_dict.json"})  # files that name others to read, as an index does


def real_path(text: str) -> Path | None:
    """The absolute path with all links followed; it need not exist. None for what is no absolute path."""
    if not text.startswith("/") or "\\" in text:
        return None
    try:
        return Path(os.path.realpath(text))
    except (OSError, ValueError):
        return None


def leads_out(path: Path, roots: Sequence[Path]) -> str | None:
    """Why this real path may not be read. None if it may be, or does not exist. path: below one of the roots"""
    real_roots = [root for root in (real_path(str(root)) for root in roots) if root is not None]
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        if len(seen) > MOST_ENTRIES:
            return f"holds more than {MOST_ENTRIES:,} files; name the folder that is meant"
        if not any(current.is_relative_to(root) for root in real_roots):
            return "holds a link that leads out of the folders that the API may use; take it out"
        reason = _no_data(current)
        if reason:
            return reason
        waiting += [entry for entry in map(real_path, _entries(current)) if entry is not None]
    return None


def _entries(path: Path) -> list[str]:
    try:
        return [entry.path for entry in os.scandir(path)]
    except OSError:  # no folder, or not readable for a run either
        return []


def _no_data(path: Path) -> str | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    if not stat.S_ISDIR(facts.st_mode) and not stat.S_ISREG(facts.st_mode):
        return "holds something that is neither a file nor a folder; take it out"
    if (
        (path.name in LISTS or path.name.endswith(".index.json"))
        and stat.S_ISREG(facts.st_mode)
        and _names_others(path, facts.st_size)
    ):
        return f"holds {path.name}, which names files outside its folder; take it out"
    return None


def _names_others(path: Path, size: int) -> bool:
    if size > LARGEST_LIST_BYTES:
        return True
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False  # a run cannot read it either
    return any(text.startswith("/") or ".." in text.split("/") for text in _texts(content))


def _texts(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            waiting += value

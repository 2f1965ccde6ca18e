"""What data sets are called: in sentences, on the board, and in the names of their losses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..paths import folder_of, is_pattern


def listed(paths: Sequence[str]) -> str:
    """Paths as in `a.jsonl, b.jsonl and c.jsonl`."""
    return " and ".join(filter(None, [", ".join(paths[:-1]), paths[-1]]))


def distinct(names: Sequence[str]) -> list[str]:
    """The names, numbered from the second on where they are equal: `rows`, `rows-2`. A number is not given twice."""
    found: list[str] = []
    for index, name in enumerate(names):
        number, taken = 1, {*found, *names[index + 1 :]} if name in found else set(found)
        while (numbered := name if number == 1 else f"{name}-{number}") in taken:
            number += 1
        found.append(numbered)
    return found


def name_of(path: str, given: str | None) -> str:
    """A data set's name: the one given, else the last part of its path without an ending.

    Of a pattern it is the last part before the pattern: `data` of `data/*.jsonl`.
    """
    return given or Path(folder_of(path) if is_pattern(path) else path).name.partition(".")[0] or path

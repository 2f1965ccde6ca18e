"""A row of a data set and its name. A row that cannot be read is a value too, not an exception."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One row: `name` as in `train.jsonl line 17`, `values` by column.

    folder: that of its file, where one data set has several; pictures: how many `values` has as `Picture`
    """

    name: str
    values: dict[str, Any]
    folder: str = ""
    pictures: int = 0


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read. Like faults share one `reason`; `detail` says more about this row."""

    name: str
    reason: str
    detail: str = ""


Rows = Iterator[Row | BadRow]


def checked_row(name: str, values: Any) -> Row | BadRow:
    """Parsed values as a row; a BadRow if they are no object or hold text that is not Unicode."""
    if not isinstance(values, dict):
        return BadRow(name, "not an object", f"a {type(values).__name__}")
    if not values:
        return BadRow(name, "no columns")
    try:
        json.dumps(values, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return BadRow(name, "not valid UTF-8", "half of a surrogate pair")
    return Row(name, values)

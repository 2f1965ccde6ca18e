"""Reads the pictures that rows name, so that the rows carry them on to whoever tokenises."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...config.paths import folder_of, is_pattern
from ...config.sections.data import DataSet
from ..readers import RowSource
from ..rows import BadRow, Row
from ..shapes.choice import image_column, message_columns
from ..shapes.conversation import Picture
from ..shapes.messages import message_keys
from .files import PictureFiles

PARTS = ("image", "image_url", "input_image")
KEPT = ("type", "index")  # keys of a part that has no picture of its own


def with_pictures(source: RowSource, data: DataSet, files: PictureFiles) -> RowSource:
    """The source, whose rows have a `Picture` in place of each that they name."""
    return replace(source, rows=_read(source, data, files))


def picture_files(data: DataSet) -> PictureFiles:
    """The files that a data set's pictures may be read from."""
    return PictureFiles(data.section.pictures, home_of(data))


def home_of(data: DataSet) -> Path | None:
    """The folder of a data set, from which its pictures may be read; None if it is not on this machine."""
    path = Path(folder_of(data.path) if is_pattern(data.path) else data.path).expanduser()
    if path.is_dir():
        return path
    return path.parent if path.is_file() else None


def _read(source: RowSource, data: DataSet, files: PictureFiles) -> Iterator[Row | BadRow]:
    ignored, most = set(data.section.ignore_columns), data.section.pictures.per_example
    lists = [name for name in message_columns(data) if name not in ignored]
    for row in source.rows:
        if isinstance(row, BadRow):
            yield row
            continue
        column = image_column(row.values, data)
        columns = [] if column is None or column in ignored else [column]
        found = _Reading(row, files, most)
        values = dict(row.values)
        values |= {name: found.column(values[name]) for name in columns}
        values |= {name: found.messages(values[name], data) for name in lists if isinstance(values.get(name), list)}
        yield Row(row.name, values, row.folder, found.count) if found.count else row


class _Reading:
    """Reads the pictures of one row. Of a row with too many, it reads none beyond them."""

    def __init__(self, row: Row, files: PictureFiles, most: int) -> None:
        self._row, self._files, self._most = row, files, most
        self.count = 0

    def column(self, value: Any) -> list[Picture]:
        return [self._one(one) for one in (value if isinstance(value, list) else [value]) if one is not None]

    def messages(self, value: list[Any], data: DataSet) -> list[Any]:
        return [self._message(message, data) for message in value]

    def _message(self, message: Any, data: DataSet) -> Any:
        key = message_keys(message, data.columns)[1] if isinstance(message, dict) else ""
        parts = message.get(key) if isinstance(message, dict) else None
        if not isinstance(parts, list):
            return message
        return {**message, key: [self._part(part) for part in parts]}

    def _part(self, part: Any) -> Any:
        if not isinstance(part, dict) or part.get("type") not in PARTS:
            return part
        own = {key: value for key, value in part.items() if key not in KEPT and value is not None}
        return {**part, "type": "image", "picture": self._one(own) if own else None}

    def _one(self, value: Any) -> Picture:
        self.count += 1
        if self.count > self._most:
            reason = f"more than {self._most} pictures (train.data.pictures.per_example)"
            return Picture("", fault=(reason, ""))
        folder = self._row.folder
        return self._files.read(value, Path(folder) if folder else None)

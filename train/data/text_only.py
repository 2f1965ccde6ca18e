"""Refuses what a base does not take: sounds and films, and pictures for one that does not see.

The text around them would teach answers about things that the model never gets.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ..config.sections.data import DataSet
from ..errors import UserError
from .rows import Row
from .shapes.choice import image_column, message_columns

MEDIA = {"image": "an image", "audio": "a sound", "video": "a film"}
PART_TYPES = {**MEDIA, "input_image": MEDIA["image"], "input_audio": MEDIA["audio"]}


def refuse_media(row: Row, data: DataSet, sees: bool) -> None:
    """Raises UserError if a row holds what the base does not take, in a column or inside a message. sees: pictures"""
    names = data.columns
    found = _media_column(row, data)
    for name in message_columns(data):
        found += _media_in_messages(name, row.values.get(name), names.content or "content")
    for kind, place in found:
        if kind == MEDIA["image"] and sees:
            continue
        blind = kind == MEDIA["image"]
        why = "the base does not see (of Gemma 3, 4B, 12B and 27B do)" if blind else "Gemma 3 takes none"
        raise UserError(
            f"{row.name} of {data.path} holds {kind} ({place}), but {why}; leave out such rows, or take out what is no "
            "text where the rest makes sense without it"
        )


def _media_column(row: Row, data: DataSet) -> list[tuple[str, str]]:
    """The columns of media that are not empty, with their kinds. Mixed data sets often have empty ones."""
    texts: Collection[str] = {one for key, one in data.columns.model_dump().items() if key != "images"}
    found = []
    for name, value in row.values.items():
        kind = MEDIA.get(name.lower().removesuffix("s"))
        if name == image_column(row.values, data):
            kind = MEDIA["image"]
        if kind and value and name not in texts:
            found.append((kind, f"in the column {name!r}"))
    return found


def _media_in_messages(name: str, messages: Any, key: str) -> list[tuple[str, str]]:
    contents = [m.get(key) for m in messages if isinstance(m, dict)] if isinstance(messages, list) else []
    parts = [part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict)]
    types = [str(part.get("type")).removesuffix("_url") for part in parts]
    return [(PART_TYPES[kind], f"in {name!r}") for kind in types if kind in PART_TYPES]

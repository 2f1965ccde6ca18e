"""Refuses images, sounds and films: the text around them would teach answers about things the model never sees."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ..config.sections.data import DataSet
from ..errors import UserError
from .rows import Row
from .shapes.choice import message_columns

MEDIA = {"image": "an image", "audio": "a sound", "video": "a film"}
PART_TYPES = {**MEDIA, "input_image": MEDIA["image"], "input_audio": MEDIA["audio"]}


def refuse_media(row: Row, data: DataSet) -> None:
    """Raises UserError if a row holds more than text, in a column or inside a message."""
    names = data.columns
    found = _media_column(row.values, set(filter(None, names.model_dump().values())))
    for name in message_columns(data):
        found = found or _media_in_messages(name, row.values.get(name), names.content or "content")
    if found:
        kind, place = found
        raise UserError(
            f"{row.name} of {data.path} holds {kind} ({place}), but gemfleet trains Gemma 3 on text only; leave out "
            "such rows, or take out what is no text where the rest makes sense without it"
        )


def _media_column(values: dict[str, Any], texts: Collection[str]) -> tuple[str, str] | None:
    """A column of media that is not empty, and its kind. Mixed data sets often have empty ones."""
    for name, value in values.items():
        kind = MEDIA.get(name.lower().removesuffix("s"))
        if kind and value and name not in texts:
            return kind, f"in the column {name!r}"
    return None


def _media_in_messages(name: str, messages: Any, key: str) -> tuple[str, str] | None:
    contents = [m.get(key) for m in messages if isinstance(m, dict)] if isinstance(messages, list) else []
    parts = [part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict)]
    types = [str(part.get("type")).removesuffix("_url") for part in parts]
    return next(((PART_TYPES[kind], f"in {name!r}") for kind in types if kind in PART_TYPES), None)

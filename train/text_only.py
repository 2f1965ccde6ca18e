"""Images in the data are refused: training on the text around them would teach answers to pictures never seen."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from .config import DataConfig
from .errors import UserError
from .readers import Row

IMAGE_COLUMNS = ("image", "images")


def refuse_images(row: Row, data: DataConfig) -> None:
    """UserError where a row holds an image, in a column of its own or inside a message."""
    names = data.columns
    in_use = {names.text, names.prompt, names.completion, names.messages}
    place = _image_column(row.values, in_use) or next(
        (f"in {name!r}" for name in (names.messages, names.prompt) if _image_in_messages(row.values.get(name))), None
    )
    if place:
        raise UserError(
            f"{row.name} of {data.train} holds an image ({place}), but gemfleet trains Gemma 3 on text only; "
            "leave out the rows with images, or drop their images if the text makes sense without them"
        )


def _image_column(values: dict[str, Any], in_use: Collection[str]) -> str | None:
    """A column of images with something in it; empty ones are common where data sets were mixed."""
    found = [name for name in IMAGE_COLUMNS if name not in in_use and values.get(name)]
    return f"in the column {found[0]!r}" if found else None


def _image_in_messages(messages: Any) -> bool:
    contents = [m.get("content") for m in messages if isinstance(m, dict)] if isinstance(messages, list) else []
    parts = [part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict)]
    return any(str(part.get("type")).startswith("image") for part in parts)

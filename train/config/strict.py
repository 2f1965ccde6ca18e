"""The base of every configuration model, and sizes in bytes."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

MOST = 2**31 - 1  # the largest count of anything
BYTE_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


class StrictModel(BaseModel):
    """Base of every configuration model: it refuses unknown keys, converts no values, and its instances are frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True)


def parse_bytes(text: int | str) -> int:
    """The bytes that `16GiB`, `512MiB`, `1.5 GiB` or a plain number stands for; 0 for any other text."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB)?", str(text).strip())
    return 0 if match is None else int(float(match[1]) * BYTE_UNITS[match[2] or "B"])


def _is_a_size(value: int | str) -> int | str:
    if parse_bytes(value) <= 0:
        raise ValueError(f"{value!r} is no memory size; give bytes, or a number with KiB, MiB or GiB as in 16GiB")
    return value


Size = Annotated[int | str, AfterValidator(_is_a_size)]

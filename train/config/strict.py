"""The base of every configuration model."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

MOST = 2**31 - 1  # the largest count of anything


class StrictModel(BaseModel):
    """Base of every configuration model: it refuses unknown keys, converts no values, and its instances are frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, populate_by_name=True)

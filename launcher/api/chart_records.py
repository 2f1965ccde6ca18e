"""Makes records small enough that a page draws thousands of them at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median
from typing import Any

from gemfleet.train.step.record import FIGURES

MOST_RANKS = 8  # a line each; of more than these a chart shows a band
POSITION = ("kind", "step", "total_steps", "time", "tokens")
KEPT = (*POSITION, *(figure.name for figure in FIGURES if figure.chart))


def chart_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """What charts draw of a record, and its position. Of more than MOST_RANKS ranks: `min`, `median` and `max`."""
    return {name: _band(record[name]) for name in KEPT if name in record}


def _band(value: Any) -> Any:
    if not isinstance(value, list) or len(value) <= MOST_RANKS:
        return value
    told = [one for one in value if one is not None and math.isfinite(one)]
    return {"min": min(told), "median": median(told), "max": max(told)} if told else {}

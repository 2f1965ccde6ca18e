"""The figures of a whole run, over all its steps. The last step alone says little: its batch may be small."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

MEDIANS = (
    *("step_seconds", "data_wait_seconds", "checkpoint_wait_seconds", "tokens_per_second", "mfu", "hfu"),
    *("tokens_per_second_per_rank", "supervised_tokens_per_second", "raw_tokens_per_second"),
    "flops_per_second_per_rank",
)
MOST_VALUES = 20_000  # in a longer run only every n-th step counts for the medians


def figures_of(records: Iterable[Mapping[str, Any]], count: int) -> dict[str, Any]:
    """From the records of all `count` optimizer steps: how many there are (`steps`), the mean of `loss`, the median of
    each of MEDIANS, and the maximum of `peak_memory_bytes`.

    What no record has is left out; empty for a run without steps.
    """
    every = max(1, math.ceil(count / MOST_VALUES))
    losses, values, peak = _Mean(), {name: list[float]() for name in MEDIANS}, 0
    for number, record in enumerate(records):
        losses.add(record.get("loss"))
        peak = max(peak, record.get("peak_memory_bytes") or 0)
        if number % every == 0:
            for name in MEDIANS:
                if _is_finite(record.get(name)):
                    values[name].append(record[name])
    found: dict[str, Any] = {"steps": count} if count else {}
    found |= {"loss": losses.total / losses.count} if losses.count else {}
    found |= {name: statistics.median(numbers) for name, numbers in values.items() if numbers}
    return {**found, "peak_memory_bytes": peak} if peak else found


class _Mean:
    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, value: Any) -> None:
        if _is_finite(value):
            self.total, self.count = self.total + value, self.count + 1


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)

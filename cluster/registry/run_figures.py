"""What a run came to: figures over all its steps, not those of the last one, whose batch may be small."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

MOST_VALUES = 20_000  # of longer runs every n-th step counts for the medians


def figures_of(records: Iterable[Mapping[str, Any]], count: int, over_run: Mapping[str, str]) -> dict[str, Any]:
    """From the records of all optimizer steps, `count` of them: `steps`, and what the figures of `over_run` come to.

    over_run: `mean`, `median` or `max` by the name of the figure. A figure that no record has is left out; the result
    is empty for a run without steps.
    """
    every = max(1, math.ceil(count / MOST_VALUES))
    figures = {name: _Figure(how) for name, how in over_run.items()}
    for number, record in enumerate(records):
        for name, figure in figures.items():
            figure.add(record.get(name), number % every == 0)
    found: dict[str, Any] = {"steps": count} if count else {}
    return found | {name: figure.value() for name, figure in figures.items() if figure.count}


class _Figure:
    """One figure over the steps that were added so far."""

    def __init__(self, how: str) -> None:
        self._how, self.count = how, 0
        self._total, self._most, self._values = 0.0, -math.inf, list[float]()

    def add(self, value: Any, for_median: bool) -> None:
        """for_median: whether this step is one of those whose values are kept."""
        if not (isinstance(value, int | float) and math.isfinite(value)):
            return
        if self._how != "median":
            self._total, self._most, self.count = self._total + value, max(self._most, value), self.count + 1
        elif for_median:
            self._values.append(value)
            self.count += 1

    def value(self) -> float:
        if self._how == "median":
            return statistics.median(self._values)
        return self._most if self._how == "max" else self._total / self.count

"""The figures of a whole run, over all its steps. The last step alone says little: its batch may be small."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

MOST_VALUES = 20_000  # in a longer run only every n-th step counts for the medians


def figures_of(records: Iterable[Mapping[str, Any]], count: int, over_run: Mapping[str, str]) -> dict[str, Any]:
    """The figures of a run from the records of all its optimizer steps, and their number as `steps`.

    count:    how many records there are
    over_run: by the name of a figure, how it is made: `mean`, `median` or `max`

    A figure that no record has is left out. The result is empty for a run without steps.
    """
    every = max(1, math.ceil(count / MOST_VALUES))
    figures = {name: _Figure(name, how) for name, how in over_run.items()}
    medians = [figure for figure in figures.values() if figure.how == "median"]
    others = [figure for figure in figures.values() if figure.how != "median"]
    for number, record in enumerate(records):
        for figure in others if number % every else [*others, *medians]:
            figure.add(record)
    found: dict[str, Any] = {"steps": count} if count else {}
    return found | {name: figure.value() for name, figure in figures.items() if figure.count}


class _Figure:
    """One figure of the records that were added so far."""

    def __init__(self, name: str, how: str) -> None:
        self.name, self.how, self.count = name, how, 0
        self._total, self._most, self._values = 0.0, -math.inf, list[float]()

    def add(self, record: Mapping[str, Any]) -> None:
        value = record.get(self.name)
        if not (isinstance(value, int | float) and math.isfinite(value)):
            return
        self.count += 1
        if self.how == "median":
            self._values.append(value)
        else:
            self._total, self._most = self._total + value, max(self._most, value)

    def value(self) -> float:
        if self.how == "median":
            return statistics.median(self._values)
        return self._most if self.how == "max" else self._total / self.count

"""A chart before it is drawn, so that the page and the pictures show the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["bar", "stack", "line"]
# Okabe and Ito's colours, which people who see colours differently can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#B8A800", "#7F7F7F")
IDEAL_COLOUR = "#444444"


@dataclass(frozen=True)
class Series:
    """x: names for bars, numbers for lines; low, high: ends of error bars. ideal: drawn dashed and grey."""

    name: str
    x: Sequence[str] | Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    ideal: bool = False


@dataclass(frozen=True)
class Chart:
    """name: of its file; note: what a reader has to know to read it."""

    name: str
    title: str
    kind: Kind
    x_title: str
    y_title: str
    series: Sequence[Series]
    note: str = ""

    def colours(self) -> list[str]:
        """One for each series, in order."""
        plain = iter(COLOURS * (1 + len(self.series) // len(COLOURS)))
        return [IDEAL_COLOUR if series.ideal else next(plain) for series in self.series]


@dataclass(frozen=True)
class TableOf:
    """A table: the first column is text, the others are figures."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """What one suite has to say. `taken`: where, when and from which source its records were taken."""

    title: str
    taken: str
    tables: Sequence[TableOf]
    charts: Sequence[Chart]
    notes: Sequence[str] = ()

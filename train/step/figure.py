"""Describes one figure of a record: its unit, its meaning, and every place that shows it. It imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, Literal, get_type_hints

TAG_GROUPS = {"step": "train", "eval": "eval"}


@dataclass(frozen=True)
class Chart:
    """Where the board draws a figure. Figures with the same title share a chart.

    line: the name of its curve; a figure with an entry for each rank or set has a curve for each, named by it
    from_zero: whether the axis of values begins at zero
    compared: whether the page that compares runs draws it too
    stacked: whether the curves of the chart are laid on one another, as parts of a sum
    """

    title: str
    line: str = ""
    from_zero: bool = True
    compared: bool = False
    stacked: bool = False


@dataclass(frozen=True, kw_only=True)
class Figure:
    """The description of one field of a record. `figures` fills in `name`, `kind` and `type` from the field itself.

    kind: of the record: `step` or `eval`
    type: of the value in Python
    unit: such as `tokens/s`; `1` for a plain number or a share; empty for text
    text: one sentence
    per_rank: whether the value is a list with an entry for each rank
    per_set: whether the value is an object with an entry for each evaluation set
    over_run: how the API tells it for a run that has ended: the mean, median or maximum of its steps, or the value of
        its newest step. None: the API's document of a run lacks it, or has it under another name.
    curve: whether TensorBoard draws it
    chart: the chart of the board that draws it
    tile: the label of the board's tile that shows its newest value; the API's document of a run must tell it
    gauge: its name for Prometheus, without `gemfleet_`
    suites: whether the training suites keep it for each step and report its median
    formula: computes it from its record's other fields; None for a measured figure
    """

    unit: str
    text: str
    name: str = ""
    kind: str = ""
    type: Any = None
    per_rank: bool = False
    per_set: bool = False
    over_run: Literal["mean", "median", "max", "newest"] | None = None
    curve: bool = False
    chart: Chart | None = None
    tile: str | None = None
    gauge: str | None = None
    suites: bool = False
    formula: Callable[[Any], Any] | None = None

    @property
    def tag(self) -> str:
        """The name of its curve in TensorBoard: `train/loss`, `eval/loss`."""
        return f"{TAG_GROUPS[self.kind]}/{self.name.removeprefix('eval_')}"

    def values(self, record: Mapping[str, Any]) -> Iterator[tuple[str | None, float]]:
        """The numbers that a record has of it, each with its rank or set; None where there is but one."""
        kept = record.get(self.name)
        several = dict(enumerate(kept or [])) if self.per_rank else (kept or {}) if self.per_set else {None: kept}
        for name, value in several.items():
            if isinstance(value, int | float):
                yield None if name is None else str(name), float(value)


def measured(unit: str, text: str, default: Any = MISSING, **places: Any) -> Any:
    """A dataclass field that is given when the record is made. places: see `Figure`."""
    return field(default=default, metadata={"figure": Figure(unit=unit, text=text, **places)})


def derived(unit: str, text: str, formula: Callable[[Any], Any], **places: Any) -> Any:
    """A dataclass field that `formula` makes of the record's other fields. places: see `Figure`."""
    return field(init=False, metadata={"figure": Figure(unit=unit, text=text, formula=formula, **places)})


def figures(record: Any) -> tuple[Figure, ...]:
    """The descriptions of all fields of a record's class, in their order."""
    types = get_type_hints(record)
    found = [(one, one.metadata["figure"]) for one in fields(record)]
    return tuple(replace(place, name=one.name, kind=record.KIND, type=types[one.name]) for one, place in found)

"""The figures of records in the API's description of itself, and in its document of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gemfleet.train.step.figure import Figure
from gemfleet.train.step.record import STEP_FIGURES
from pydantic import TypeAdapter

# What the document of a run tells among its throughput. The mean of the loss has a place of its own there.
THROUGHPUT = tuple(figure for figure in STEP_FIGURES if figure.over_run not in (None, "mean"))


def with_figures(figures: Sequence[Figure]) -> Callable[[dict[str, Any]], None]:
    """`json_schema_extra` for a model whose extra fields are these figures: type, unit and meaning of each.

    They are no fields of the model, so that a record is answered as it was kept: what it lacks is not made null.
    """

    def extend(schema: dict[str, Any]) -> None:
        known = schema.get("properties", {})
        schema["properties"] = {**known, **{f.name: _property(f) for f in figures if f.name not in known}}

    return extend


def _property(figure: Figure) -> dict[str, Any]:
    described = f"{figure.text} Unit: {figure.unit}." if figure.unit else figure.text
    return {**TypeAdapter(figure.type | None).json_schema(), "description": described, "x-unit": figure.unit}

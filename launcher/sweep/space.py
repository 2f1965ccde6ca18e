"""The values that a sweep tries: `--grid FIELD=V1,V2`, `--uniform` and `--loguniform FIELD=LOW:HIGH`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, product
from math import prod
from typing import Any

import yaml
from gemfleet.launcher.config.load import parse_yaml
from gemfleet.launcher.runs.sweeps import Range
from gemfleet.train.errors import UserError

MOST_TRIALS = 1000


@dataclass(frozen=True)
class Space:
    """By field: the values of a grid as `--set` takes them, and the ends of ranges."""

    grid: dict[str, list[str]]
    ranges: dict[str, Range]

    def combinations(self) -> Iterator[dict[str, str]]:
        """Each combination of the grid's values. The last field changes fastest."""
        return (dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values()))

    def count(self) -> int:
        """The number of combinations of the grid."""
        return prod(map(len, self.grid.values()))

    def ends(self) -> Iterator[tuple[str, str]]:
        """Each field with each value of the grid and both ends of a range: what can be checked before a trial."""
        for field, values in self.grid.items():
            yield from ((field, value) for value in values)
        for field, one in self.ranges.items():
            yield from ((field, json.dumps(end)) for end in (one.low, one.high))


def parse_space(grid: Sequence[str], uniform: Sequence[str], loguniform: Sequence[str]) -> Space:
    """The space of these options. Raises UserError for an option that cannot be read and for a field named twice."""
    grids = [_grid(text) for text in grid]
    ranges = [_range("--uniform", text, log=False) for text in uniform]
    ranges += [_range("--loguniform", text, log=True) for text in loguniform]
    fields = [field for field, _ in chain[tuple[str, Any]](grids, ranges)]
    if not fields:
        raise UserError("a sweep has nothing to try; give --grid FIELD=V1,V2, --uniform or --loguniform FIELD=LOW:HIGH")
    if twice := next((field for field in fields if fields.count(field) > 1), None):
        raise UserError(f"{twice} is swept twice; name each field once, as in --grid {twice}=1,2,3")
    return Space(dict(grids), dict(ranges))


def _grid(text: str) -> tuple[str, list[str]]:
    field, values = _split("--grid", text, "V1,V2", "train.lora.r=8,16,32")
    try:
        found = parse_yaml(f"[{values}]")
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"--grid {text!r}: the values are not YAML ({' '.join(str(error).split())}); quote them"
        ) from None
    texts = [json.dumps(value, ensure_ascii=False) for value in found]
    if twice := next((one for one in texts if texts.count(one) > 1), None):
        raise UserError(f"--grid {text!r}: {twice} is there twice; name each value once")
    return field, texts


def _range(option: str, text: str, log: bool) -> tuple[str, Range]:
    example = "train.optim.learning_rate=1e-5:1e-3"
    field, ends = _split(option, text, "LOW:HIGH", example)
    low, colon, high = ends.partition(":")
    try:
        found = [parse_yaml(low), parse_yaml(high)] if colon else []
    except (ValueError, yaml.YAMLError):
        found = []
    if len(found) != 2 or not all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in found):
        raise UserError(f"{option} {text!r}: give two numbers LOW:HIGH, as in {option} {example}")
    if not found[0] < found[1] or (log and found[0] <= 0):
        need = "0 < LOW < HIGH" if log else "LOW < HIGH"
        raise UserError(f"{option} {text!r}: the range goes from {low} to {high}; give {need}")
    if any(isinstance(end, float) for end in found):
        found = [float(end) for end in found]
    return field, Range(low=found[0], high=found[1], log=log)


def _split(option: str, text: str, values: str, example: str) -> tuple[str, str]:
    field, equals, rest = text.partition("=")
    if not equals or not all(field.strip().split(".")) or not rest.strip():
        raise UserError(f"{option} {text!r}: give FIELD={values}, as in {option} {example}")
    return field.strip(), rest.strip()

"""Chooses among the sizes that fit: pure functions of measured seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .probes.trial import Trial

TOLERANCE = 0.02  # speeds this close to the best are ties; the smallest size of a tie is taken
GAIN_WORTH_TRYING = 0.01
OVERHEAD_NOISE = 0.05  # two timings cannot show a cost per pass below this share of a row's


@dataclass(frozen=True)
class Candidate:
    """A size that fits under one variant. speed: tokens of text per second, over all ranks"""

    variant: str
    rows: int
    speed: float
    peak_bytes: int


def choose(candidates: Sequence[Candidate], tolerance: float = TOLERANCE) -> Candidate:
    """The smallest size within `tolerance` of the fastest; of equal sizes the faster. Needs one candidate or more."""
    enough = (1 - tolerance) * max(candidate.speed for candidate in candidates)
    return min((c for c in candidates if c.speed >= enough), key=lambda c: (c.rows, -c.speed))


MANY_ROWS = 1_000_000


def useful_rows(seconds: Mapping[int, float]) -> int:
    """The size beyond which more rows gain less than `GAIN_WORTH_TRYING`. seconds: of a pass, by rows; two sizes

    A pass of n rows takes a + b n seconds, so more rows can still save the share a / (b n). `OVERHEAD_NOISE` is the
    lower bound of a, so noise cannot hide a cost. If time hardly grows with rows, any size is worth a try.
    """
    overhead, per_row = _pass_cost(seconds)
    if per_row <= 0:
        return MANY_ROWS
    overhead = max(overhead, OVERHEAD_NOISE * per_row)
    return max(*seconds, math.ceil(overhead / (GAIN_WORTH_TRYING * per_row)))


def rows_within(seconds: Mapping[int, float], bound_s: float) -> int:
    """The largest size whose pass should end within `bound_s`. seconds: of a pass, by rows; two sizes"""
    overhead, per_row = _pass_cost(seconds)
    return MANY_ROWS if per_row <= 0 else int((bound_s - overhead) / per_row)


def _pass_cost(seconds: Mapping[int, float]) -> tuple[float, float]:
    """a and b, if a pass of n rows takes a + b n seconds."""
    (few, more), (short, long) = zip(*sorted(seconds.items()), strict=True)
    per_row = (long - short) / (more - few)
    return short - per_row * few, per_row


def sizes_to_time(largest: int) -> list[int]:
    """The powers of two below the largest size that fits, and that size."""
    return sorted({2**k for k in range(largest.bit_length()) if 2**k <= largest} | {largest})


def fastest_pass(trials: Sequence[Trial], rows: int) -> float:
    """Seconds of the shortest pass of this size: a disturbance can only lengthen a pass."""
    return min(trial.seconds for trial in trials if trial.rows == rows and trial.fits)

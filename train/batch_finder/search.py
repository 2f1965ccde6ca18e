"""How many rows to try next. Peak memory is affine in rows, so two small trials predict the largest that fits.

Everything is a pure function of the trials so far: the next size is tried by whoever calls.
"""

from __future__ import annotations

from collections.abc import Sequence

from .probes.trial import RankMeasure, Trial

MAX_MEMORY_TRIALS = 6
MAX_LEAP = 16  # how many times the largest measured size a prediction is trusted


def next_rows(trials: Sequence[Trial], ceiling: int) -> int | None:
    """The size to try after these trials, from 1 to `ceiling` rows; None when the largest that fits is settled.

    One row, two rows, the largest prediction; bisection only where a verdict disagrees with the line. At most
    `MAX_MEMORY_TRIALS` trials in all.
    """
    low, high = largest_fit(trials), smallest_misfit(trials, ceiling)
    if high - low <= 1 or len(trials) >= MAX_MEMORY_TRIALS:
        return None
    if low < 2:
        return low + 1
    predicted = min(predicted_fit(trials), MAX_LEAP * low)
    if predicted <= low:
        return None  # the line says that one row more would not fit
    if predicted < high:
        return predicted
    return ceiling if high > ceiling else (low + high) // 2  # what was refused shows that the line promises too much


def largest_fit(trials: Sequence[Trial]) -> int:
    """The largest size below every refused one that fitted; 0 when none did."""
    refused = min((t.rows for t in trials if not t.fits), default=None)
    return max((t.rows for t in trials if t.fits and (refused is None or t.rows < refused)), default=0)


def smallest_misfit(trials: Sequence[Trial], ceiling: int) -> int:
    """The smallest size that was refused, or one above the ceiling."""
    return min((t.rows for t in trials if not t.fits), default=ceiling + 1)


def predicted_fit(trials: Sequence[Trial]) -> int:
    """The largest size that the line through the smallest and largest measured sizes lets fit on every rank."""
    measured = sorted((t for t in trials if t.failure is None), key=lambda t: t.rows)
    first, last = measured[0], measured[-1]
    return min(
        _rank_fit(first.rows, small, last.rows, large) for small, large in zip(first.ranks, last.ranks, strict=True)
    )


def _rank_fit(rows: int, small: RankMeasure, more_rows: int, large: RankMeasure) -> int:
    """One rank's prediction. A slope that is flat or falls is noise: growth is then taken as not measurable."""
    if more_rows == rows:
        return rows
    slope = (large.peak_bytes - small.peak_bytes) / (more_rows - rows)
    room = large.usable_bytes - large.peak_bytes
    if slope <= 0:
        return MAX_LEAP * more_rows if room >= 0 else more_rows - 1
    return more_rows + int(room // slope)

"""Chooses the rows to try next. Peak memory is affine in rows, so two small trials predict the largest size that fits.

All functions are pure functions of the trials so far. The caller tries the next size.
"""

from __future__ import annotations

from collections.abc import Sequence

from .probes.trial import RankMeasure, Trial

MAX_MEMORY_TRIALS = 6
MAX_LEAP = 16  # a prediction is trusted up to so many times the largest measured size


def next_rows(trials: Sequence[Trial], ceiling: int) -> int | None:
    """The size to try after these trials, from 1 to `ceiling` rows; None if the largest that fits is known.

    One row, two rows, then the prediction. Bisection follows only if a verdict disagrees with the line. There are at
    most `MAX_MEMORY_TRIALS` trials.
    """
    low, high = largest_fit(trials), smallest_misfit(trials, ceiling)
    if high - low <= 1 or len(trials) >= MAX_MEMORY_TRIALS:
        return None
    if low < 2:
        return low + 1
    predicted = min(predicted_fit(trials), MAX_LEAP * low)
    if predicted <= low:
        return None  # by the line, one row more does not fit
    if predicted < high:
        return predicted
    return ceiling if high > ceiling else (low + high) // 2  # a refused size shows that the line promises too much


def largest_fit(trials: Sequence[Trial]) -> int:
    """The largest size that fitted below every refused one; 0 if none did."""
    refused = min((t.rows for t in trials if not t.fits), default=None)
    return max((t.rows for t in trials if t.fits and (refused is None or t.rows < refused)), default=0)


def smallest_misfit(trials: Sequence[Trial], ceiling: int) -> int:
    """The smallest refused size, or one above the ceiling."""
    return min((t.rows for t in trials if not t.fits), default=ceiling + 1)


def predicted_fit(trials: Sequence[Trial]) -> int:
    """The largest size that fits on every rank, by the line through the smallest and the largest measured size."""
    measured = sorted((t for t in trials if t.failure is None), key=lambda t: t.rows)
    first, last = measured[0], measured[-1]
    return min(
        _rank_fit(first.rows, small, last.rows, large) for small, large in zip(first.ranks, last.ranks, strict=True)
    )


def _rank_fit(rows: int, small: RankMeasure, more_rows: int, large: RankMeasure) -> int:
    """One rank's prediction. A slope that is flat or falls is noise: then growth counts as not measurable."""
    if more_rows == rows:
        return rows
    slope = (large.peak_bytes - small.peak_bytes) / (more_rows - rows)
    room = large.usable_bytes - large.peak_bytes
    if slope <= 0:
        return MAX_LEAP * more_rows if room >= 0 else more_rows - 1
    return more_rows + int(room // slope)

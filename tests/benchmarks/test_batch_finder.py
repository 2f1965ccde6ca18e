"""What the batch finder's benchmark claims rests on these: the caps it sets, and the share of the best."""

from __future__ import annotations

import pytest
from gemfleet.benchmarks.batch_finder.measure import Size
from gemfleet.benchmarks.batch_finder.suite import cap_for, share_of_best

SIZES = [Size(rows, speed, 1000 + 100 * rows) for rows, speed in ((1, 50.0), (2, 80.0), (3, 100.0), (4, 99.0))]


def test_a_cap_lets_just_that_many_rows_fit_below_the_margin() -> None:
    for rows in (2, 3):
        cap = cap_for(rows, SIZES, margin=0.08)
        assert [size.peak_bytes <= 0.92 * cap for size in SIZES] == [size.rows <= rows for size in SIZES]


def test_the_best_is_the_fastest_size_within_the_whole_cap() -> None:
    assert share_of_best(2, 1250, SIZES) == (1.0, 2)
    assert share_of_best(2, 5000, SIZES) == (0.8, 3)
    share, _ = share_of_best(4, 5000, SIZES)
    assert share == pytest.approx(0.99)

"""Efficiency from records with known rates: round by round, against the best single worker."""

from __future__ import annotations

import pytest
from gemfleet.benchmarks.scaling.suite import efficiencies
from gemfleet.benchmarks.shared.record import Record, Run

LENGTH = 10


def record(ranks: int, rows: int, micro: int, rates: list[float]) -> Record:
    """One run a rate, in tokens per second; the first step is warm-up and far slower."""
    tokens = ranks * rows * LENGTH
    runs = [
        Run(
            repeat=repeat,
            started_at="",
            step_seconds=[100.0, tokens / rate, tokens / rate],
            tokens=[tokens] * 3,
            facts={"wire_bytes_per_step": 1000 * (ranks - 1)},
        )
        for repeat, rate in enumerate(rates)
    ]
    return Record(
        suite="scaling",
        case=f"{ranks}-{rows}-{micro}",
        finished_at="",
        command="",
        git_commit=None,
        hardware={},
        versions={},
        config={"ranks": ranks, "rows": rows, "micro": micro},
        warmup=1,
        runs=runs,
    )


ONE = record(1, 2, 1, [80.0, 80.0, 80.0])
BEST_ONE = record(1, 2, 2, [100.0, 50.0, 100.0])
TWO = record(2, 2, 2, [190.0, 95.0, 180.0])


def test_weak_scaling_is_against_the_best_single_worker_of_the_same_round() -> None:
    """The second round was taken while the machine was half as fast: it says the same of scaling."""
    one, two = efficiencies([ONE, BEST_ONE, TWO, record(2, 2, 1, [10.0, 10.0, 10.0])])
    assert (one.mode, one.workers, one.micro, one.efficiency) == ("weak", 1, 2, 1.0)
    assert (two.mode, two.workers, two.micro) == ("weak", 2, 2)
    assert two.tokens_per_second == 180.0
    assert (two.least, two.efficiency, two.most) == pytest.approx((0.90, 0.95, 0.95))
    assert two.wire_bytes == 1000


def test_strong_scaling_shares_the_rows_of_one_worker() -> None:
    whole = record(1, 4, 2, [100.0, 100.0, 100.0])
    points = efficiencies([BEST_ONE, whole, TWO])
    assert [(point.mode, point.workers, point.rows) for point in points] == [
        ("weak", 1, 2),
        ("weak", 2, 2),
        ("strong", 1, 4),
        ("strong", 2, 2),
    ]


def test_without_a_single_worker_nothing_is_told() -> None:
    assert efficiencies([TWO]) == []

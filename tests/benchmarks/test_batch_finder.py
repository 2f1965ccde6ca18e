"""What the batch finder's benchmark claims rests on these: the caps it sets, and the share of the best."""

from __future__ import annotations

from typing import Any

import pytest
from gemfleet.benchmarks.batch_finder.measure import Size, best_size, cap_for, train_under_cap, with_cap
from gemfleet.benchmarks.batch_finder.suite import COLUMNS, misses, row
from gemfleet.benchmarks.shared.models import model_folder
from gemfleet.train.config.schema import TrainConfig

SIZES = [Size(rows, speed, 1000 + 100 * rows) for rows, speed in ((1, 50.0), (2, 80.0), (3, 100.0), (4, 99.0))]


def test_a_cap_lets_just_that_many_rows_fit_below_the_margin() -> None:
    for rows in (2, 3):
        cap = cap_for(rows, SIZES, margin=0.08)
        assert [size.peak_bytes <= 0.92 * cap for size in SIZES] == [size.rows <= rows for size in SIZES]


def test_the_best_is_the_fastest_size_within_the_whole_cap() -> None:
    assert best_size(1250, SIZES) == 2
    assert best_size(5000, SIZES) == 3


def result(share: float = 0.99, trials: int = 4, training: dict[str, Any] | None = None) -> dict[str, Any]:
    found = {"rows": 2, "of_best": share, "seconds": 1.0, "trials": 9, "memory_trials": trials}
    peer = {"error": "found nothing"}
    return {"cap_bytes": 1000, "best_rows": 3, "gemfleet": found, "accelerate": peer, "training": training or PEAK}


PEAK = {"peak_bytes": 990, "steps": 3}


def test_what_misses_its_figure_is_said() -> None:
    assert misses([result()]) == []
    (slow,) = misses([result(share=0.96)])
    assert "96.0% of the best (3)" in slow
    assert len(misses([result(trials=7), result(training={"peak_bytes": 1001, "steps": 3})])) == 2
    (ended,) = misses([result(training={"error": "out of memory"})])
    assert ended.endswith("training took out of memory")
    rows = [row("tiny", found) for found in (result(), result(training={"error": "out of memory"}))]
    assert [len(each) for each in rows] == [len(COLUMNS)] * 2
    assert [each[6] for each in rows] == ["0.00", "out of memory"]
    assert [each[8] for each in rows] == ["found nothing"] * 2


@pytest.mark.slow
def test_training_on_full_rows_tells_its_peak_and_is_held_to_its_cap() -> None:
    folder = model_folder("tiny", None)
    values = {"model": "tiny", "data": {"train": "x", "max_length": 64}, "precision": "fp32"}
    values |= {"strategy": "ddp", "activation_checkpointing": "off"}
    config = TrainConfig.model_validate(values)
    free = train_under_cap(config, folder, rows=2)
    assert free["steps"] == 3
    held = train_under_cap(with_cap(config, free["peak_bytes"] // 2), folder, rows=2)
    assert "out of memory with 2 rows" in held["error"]

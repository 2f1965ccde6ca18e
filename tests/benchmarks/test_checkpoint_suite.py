"""The checkpoint suite's parts: its yardstick moves real bytes, and its figures follow from the timings."""

from __future__ import annotations

from pathlib import Path

import pytest
from gemfleet.benchmarks.checkpoint.socket_copy import copy_seconds
from gemfleet.benchmarks.checkpoint.suite import MIB, sending_seconds, summary


def test_the_socket_copy_moves_everything_and_cleans_up(tmp_path: Path) -> None:
    assert 0 < copy_seconds(3 * MIB + 1, tmp_path) < 30
    assert list(tmp_path.iterdir()) == []


def test_an_upload_lasts_until_both_ranks_are_done_and_the_ratio_is_of_throughputs() -> None:
    common = {"step": 0.2, "copy": 0.1, "hand_over": 0.001, "save_step": 0.32}
    saves = [
        [
            {**common, "began": 10.0 * n, "ended": 10.0 * n + 1.0},
            {**common, "hand_over": 0.002, "began": 10.0 * n + 0.5, "ended": 10.0 * n + 2.0},
        ]
        for n in range(3)
    ]
    facts = summary(200 * MIB, saves, plain=[1.0, 1.2, 0.9], memory=64 * MIB)
    assert facts["upload_seconds"] == 2.0
    assert facts["store_mib_per_second"] == pytest.approx(100.0)
    assert facts["socket_mib_per_second"] == pytest.approx(200.0)
    assert facts["store_of_socket"] == pytest.approx(0.5)
    assert (facts["saves"], facts["step_with_save_seconds"], facts["hand_over_seconds_worst"]) == (3, 0.32, 0.002)
    assert facts["store_peak_memory_mib"] == 64


def test_time_in_which_nobody_sends_does_not_count() -> None:
    assert sending_seconds([(5.0, 6.0), (1.0, 2.0)]) == 2.0
    assert sending_seconds([(1.0, 4.0), (2.0, 3.0), (3.5, 5.0)]) == 4.0

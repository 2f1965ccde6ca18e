"""How the cost of watching is computed, on steps whose times are known."""

from __future__ import annotations

from typing import Any

import pytest
from gemfleet.benchmarks.api.training import Segment, order, summarise
from gemfleet.train.errors import UserError


def steps(start: float, seconds: list[float]) -> list[dict[str, Any]]:
    found, now = [], start
    for each in seconds:
        now += each
        found.append({"time": now, "step_seconds": each})
    return found


def test_only_whole_steps_within_a_segment_count() -> None:
    segments = [Segment(True, 0.0, 10.0), Segment(False, 10.0, 20.0)]
    watched, alone = [1.02] * 8, [1.0] * 8
    crossing = {"time": 10.5, "step_seconds": 1.0}
    summary = summarise([*steps(1.0, watched), crossing, *steps(11.0, alone)], segments)
    assert summary["slow_down"] == pytest.approx(0.02)
    assert summary["standard_error"] == pytest.approx(0.0, abs=1e-9)
    assert (summary["watched"]["steps"], summary["alone"]["steps"]) == (8, 8)


def test_the_spread_of_steps_is_in_the_error() -> None:
    segments = [Segment(True, 0.0, 100.0), Segment(False, 100.0, 200.0)]
    summary = summarise([*steps(1.0, [0.9, 1.1] * 20), *steps(101.0, [0.9, 1.1] * 20)], segments)
    assert summary["slow_down"] == pytest.approx(0.0)
    assert summary["standard_error"] == pytest.approx(0.0226, rel=0.05)


def test_both_kinds_come_first_equally_often_and_too_little_is_refused() -> None:
    assert order(4) == [True, False, False, True, True, False, False, True]
    with pytest.raises(UserError, match="too few steps"):
        summarise([], [Segment(True, 0.0, 10.0)])

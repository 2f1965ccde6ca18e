"""When the ranks' shares change, from which step on, and that a resumed run goes on with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.interfaces import EMPTY_PASS, StepRows
from gemfleet.train.step.shares import EqualShares, SpeedShares, sentence_of, shares_of, smoothed

STEP = StepRows(EMPTY_PASS, 4, 40, 20)
CPU = torch.device("cpu")


def config(**changes: Any) -> TrainConfig:
    values = {"model": "x", "data": {"train": "y", "max_length": 64}, "strategy": "ddp", "batch": {"shares": "speed"}}
    return TrainConfig.model_validate({**values, **changes})


def shares(ranks: int = 2, **changes: Any) -> SpeedShares:
    return SpeedShares(config(**changes), CPU, 0, ranks)


def weights(kept: SpeedShares, index: int) -> tuple[int, ...] | None:
    found = kept.of_step(index)
    return None if found is None else found.weights


def test_shares_follow_speed_from_the_step_after_the_next() -> None:
    kept = shares()
    assert kept.observe(0, STEP, [100.0, 1.0]) is None  # the first step warms up
    assert kept.observe(1, STEP, [90.0, 30.0]) is None
    entry = kept.observe(2, STEP, [90.0, 30.0])
    assert entry == {"shares": [1500, 500], "shares_from_step": 5}
    assert [weights(kept, index) for index in (3, 4, 9)] == [None, (1500, 500), (1500, 500)]
    assert kept.of_step(4).equal_passes is False  # type: ignore[union-attr]
    assert "the fastest gets 1.50 and the slowest 0.50" in sentence_of(entry)


def test_a_small_change_of_speed_changes_nothing_and_a_large_one_is_smoothed() -> None:
    kept = shares()
    for index in range(3):
        changed = kept.observe(index, STEP, [60.0, 60.0])
    assert changed is None
    assert not any(kept.observe(index, STEP, [60.0, 63.0]) for index in range(3, 20))
    entry = kept.observe(20, STEP, [60.0, 120.0])
    assert entry is not None
    assert entry["shares"][1] < 2 * entry["shares"][0]


def test_a_rank_without_tokens_keeps_its_speed() -> None:
    assert smoothed(0.0, 7.0) == 7.0
    assert smoothed(7.0, 0.0) == 7.0
    kept = shares()
    assert not any(kept.observe(index, STEP, [50.0, 0.0]) for index in range(8))


@pytest.mark.parametrize("saved_after", [3, 4, 5])
def test_a_resumed_run_repeats_the_shares(saved_after: int) -> None:
    """Also if it was saved between a decision and the first step with it."""
    kept, history = shares(), list[dict[str, Any]]()
    for index in range(saved_after):
        entry = kept.observe(index, STEP, [90.0, 30.0])
        history += [entry] if entry else []
    resumed = shares()
    assert resumed.begin([{"loss": 1.0, "step": 1}, *history], saved_after, lambda values: values) is None
    assert [weights(resumed, index) for index in range(saved_after, 9)] == [
        weights(kept, index) for index in range(saved_after, 9)
    ]
    other = shares(ranks=3)
    other.begin(history, saved_after, lambda values: values)
    assert other.of_step(8) is None


def test_ranks_that_wait_for_each_other_measure_themselves_before_the_first_step() -> None:
    kept = shares(strategy="fsdp2")
    entry = kept.begin([], 0, lambda own: [own[0], own[0] / 3])
    assert entry == {"shares": [1500, 500], "shares_from_step": 1}
    assert kept.of_step(0).equal_passes  # type: ignore[union-attr]
    assert not any(kept.observe(index, STEP, [9.0, 90.0]) for index in range(9))
    again = shares(strategy="fsdp2")
    assert again.begin([entry], 5, lambda own: [own[0], own[0] / 3.3]) is None  # noise does not change a resumed run
    assert weights(again, 5) == (1500, 500)


def test_shares_are_equal_unless_asked_for() -> None:
    assert type(shares_of(config(), CPU, 0, 1)) is EqualShares
    assert type(shares_of(config(batch={}), CPU, 0, 2)) is EqualShares
    assert isinstance(shares_of(config(), CPU, 0, 2), SpeedShares)
    assert EqualShares().places() == []


def test_a_pass_is_timed() -> None:
    kept = shares()
    kept.start()
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))
    kept.stop(1000)
    own, other = kept.places()
    assert np.isfinite(own)
    assert (own > 0, other) == (True, 0.0)

"""When the ranks' shares change, from which step on, and that a resumed run goes on with them."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.interfaces import EMPTY_PASS, StepRows
from gemfleet.train.kernels.loss import SupervisedCrossEntropy
from gemfleet.train.step.shares import EqualShares, SpeedShares, sentence_of, shares_of, smoothed

STEP = StepRows(EMPTY_PASS, 4, 40, 20)
CPU = torch.device("cpu")
CRITERION = SupervisedCrossEntropy(torch.ones(5, 4))


def config(**changes: Any) -> TrainConfig:
    values = {"model": "x", "data": {"train": "y", "max_length": 64}, "strategy": "ddp", "batch": {"shares": "speed"}}
    return TrainConfig.model_validate({**values, **changes})


def shares(ranks: int = 2, rank: int = 0, **changes: Any) -> SpeedShares:
    return SpeedShares(config(**changes), CPU, CRITERION, rank, ranks)


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
    resumed.restore([{"loss": 1.0, "step": 1}, *history])
    assert [weights(resumed, index) for index in range(saved_after, 9)] == [
        weights(kept, index) for index in range(saved_after, 9)
    ]
    other = shares(ranks=3)
    other.restore(history)
    assert other.of_step(8) is None


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_speed_is_that_of_the_passes_or_of_the_loss_alone_where_passes_wait_for_others(strategy: str) -> None:
    criterion = SupervisedCrossEntropy(torch.randn(50, 8))
    kept = SpeedShares(config(strategy=strategy), CPU, criterion, 0, 2)
    hidden, targets = torch.randn(30, 8, requires_grad=True), torch.randint(0, 50, (30,))
    kept.start()
    criterion(hidden, targets)
    with torch.no_grad():
        criterion(hidden, targets)  # an evaluation is not timed
    time.sleep(0.2)  # as if it waited
    kept.stop(1000)
    own, other = kept.places()
    assert other == 0.0
    assert 0 < own <= 5000 if strategy == "ddp" else own > 150
    assert kept.places() == [0.0, 0.0]


def test_where_passes_cannot_be_shorter_one_rank_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    full = StepRows(EMPTY_PASS, 4, 4 * 60, 20)
    speeds = [[90.0, 30.0]] * 3 + [[30.0, 90.0]] * 9
    for rank, step, told in ((0, STEP, 0), (0, full, 1), (1, full, 0)):
        caplog.clear()
        kept = shares(rank=rank, strategy="fsdp2")
        with caplog.at_level("INFO", logger="gemfleet.train"):
            changes = [kept.observe(index, step, of_step) for index, of_step in enumerate(speeds)]
        assert len([change for change in changes if change]) > 1
        assert len(caplog.records) == told


def test_shares_are_equal_unless_asked_for() -> None:
    assert type(shares_of(config(), CPU, CRITERION, 0, 1)) is EqualShares
    assert type(shares_of(config(batch={}), CPU, CRITERION, 0, 2)) is EqualShares
    assert isinstance(shares_of(config(), CPU, CRITERION, 0, 2), SpeedShares)
    assert EqualShares().places() == []

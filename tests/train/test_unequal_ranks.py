"""Ranks of unequal speed: the shares change no loss, a resumed run repeats them, and a step takes less time."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.rank_pool import RankPool
from support.tiny_model import save_tiny_gemma3
from support.unequal_ranks import UnequalRun, half_a_core, own_pid, unequal_case

STEPS = 12
BATCH = {"global": 16, "micro": 1}
RUN = {"batch": BATCH, "max_steps": STEPS, "epochs": 4.0, "checkpoint": {"every": 6}}
SPEED = {"batch": {**BATCH, "shares": "speed"}}


@pytest.fixture(scope="module")
def pool() -> Iterator[RankPool]:
    with RankPool(2) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_gemma3(tmp_path_factory.mktemp("model")))


def run(pool: RankPool, *arguments: Any) -> list[UnequalRun]:
    found: list[UnequalRun] = pool.run(unequal_case, *arguments)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_shares_by_speed_change_no_loss_and_a_resumed_run_repeats_them(
    pool: RankPool, model: str, tmp_path: Path, strategy: str
) -> None:
    asked = {**RUN, "strategy": strategy}
    equal, _ = run(pool, model, str(tmp_path / "equal"), asked)
    fast, slow = run(pool, model, str(tmp_path / "speed"), {**asked, **SPEED}, [3.0, 1.0])
    assert fast.losses == pytest.approx(equal.losses, abs=1e-4)
    assert equal.changes == []
    (change,) = fast.changes
    assert change["shares"] == [1500, 500]
    begin = change["shares_from_step"] - 1
    assert begin == 4
    assert (len(fast.events), slow.events) == (1, [])
    for index in range(STEPS):
        share = fast.tokens[index] / (fast.tokens[index] + slow.tokens[index])
        assert share == pytest.approx(0.75 if index >= begin else 0.5, abs=0.06)
    if strategy == "fsdp2":
        assert fast.passes == slow.passes
    shutil.rmtree(tmp_path / "speed" / f"checkpoint-{STEPS}")
    again, slow_again = run(pool, model, str(tmp_path / "speed"), {**asked, **SPEED}, [3.0, 1.0])
    assert min(again.tokens) == 6
    assert (again.losses, again.changes) == (fast.losses, fast.changes)
    for before, after in ((fast, again), (slow, slow_again)):
        assert after.tokens == {index: before.tokens[index] for index in range(6, STEPS)}


def compared(pool: RankPool, model: str, folder: Path, strategy: str, length: int, *slowness: Any) -> float:
    """The time of a step with shares by speed, as a part of that with equal shares; the losses must be equal."""
    batch = {"global": 96, "micro": 1}
    data = {"train": "x.jsonl", "max_length": length}
    asked: dict[str, Any] = {"strategy": strategy, "batch": batch, "data": data, "max_steps": 12, "epochs": 3.0}
    speed = {**asked, "batch": {**batch, "shares": "speed"}}
    equal, _ = run(pool, model, str(folder / "equal"), asked, None, *slowness)
    faster, _ = run(pool, model, str(folder / "speed"), speed, None, *slowness)
    assert faster.losses == pytest.approx(equal.losses, abs=1e-4)
    took, takes = (statistics.median(one.seconds[6:]) for one in (equal, faster))
    print(f"{strategy}: {takes:.3f} s a step by speed, {took:.3f} s in equal shares: {takes / took:.0%}", faster.events)
    return takes / took


@pytest.mark.timing
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_with_a_device_of_half_a_core_a_step_takes_at_most_three_quarters_of_the_time(
    pool: RankPool, model: str, tmp_path: Path, strategy: str
) -> None:
    """Slow by sleeping, which a busy machine does not change."""
    assert compared(pool, model, tmp_path, strategy, 512, (400, 20, 60), [0.0006, 0.0012]) <= 0.75


@pytest.mark.timing
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_with_a_rank_held_to_half_a_core_a_step_takes_at_most_three_quarters_of_the_time(
    pool: RankPool, tmp_path: Path, strategy: str
) -> None:
    """Needs a core for each rank. One long pass a step: a rank that shares its core is late to each gather."""
    model = str(save_tiny_gemma3(tmp_path / "model", vocab_size=16384))
    _, pid = pool.run(own_pid)
    with half_a_core(pid):
        assert compared(pool, model, tmp_path, strategy, 8192, (400, 60, 180)) <= 0.75

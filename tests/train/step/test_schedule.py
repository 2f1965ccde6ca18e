"""Every step's learning rate equals transformers' scheduler of the same name, whose warm-up is a step behind."""

from __future__ import annotations

import pytest
import torch
from gemfleet.train.config.sections.recipe import OptimConfig, Schedule
from gemfleet.train.step.schedule import learning_rate_at, warmup_steps


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "constant_with_warmup"])
@pytest.mark.parametrize("total", [1, 7, 50])
def test_equals_transformers(schedule: Schedule, total: int) -> None:
    from transformers import get_scheduler

    optim = OptimConfig(learning_rate=3e-4, schedule=schedule, warmup_ratio=0.1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=optim.learning_rate)
    scheduler = get_scheduler(schedule, optimizer, warmup_steps(optim, total), total)
    warmup, theirs = warmup_steps(optim, total), []
    for _ in range(total):
        theirs.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    # Shifted by one while it rises: transformers' first update is at zero, ours is not.
    expected = theirs if warmup == 0 else [*theirs[1:warmup], optim.learning_rate, *theirs[warmup:]]
    assert [learning_rate_at(step, total, optim) for step in range(total)] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "constant_with_warmup"])
@pytest.mark.parametrize("ratio", [0.03, 0.5, 1.0])
@pytest.mark.parametrize("total", [1, 2, 33, 34])
def test_every_update_has_a_learning_rate(schedule: Schedule, ratio: float, total: int) -> None:
    optim = OptimConfig(learning_rate=3e-4, schedule=schedule, warmup_ratio=ratio)
    assert all(0 < learning_rate_at(step, total, optim) <= 3e-4 for step in range(total))

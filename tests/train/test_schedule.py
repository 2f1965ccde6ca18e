"""Every step's learning rate equals transformers' scheduler of the same name."""

from __future__ import annotations

import pytest
import torch
from gemfleet.train.config import OptimConfig, Schedule
from gemfleet.train.schedule import learning_rate_at, warmup_steps


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "constant_with_warmup"])
@pytest.mark.parametrize("total", [1, 7, 50])
def test_equals_transformers(schedule: Schedule, total: int) -> None:
    from transformers import get_scheduler

    optim = OptimConfig(learning_rate=3e-4, schedule=schedule, warmup_ratio=0.1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=optim.learning_rate)
    scheduler = get_scheduler(schedule, optimizer, warmup_steps(optim, total), total)
    for step in range(total):
        assert learning_rate_at(step, total, optim) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()

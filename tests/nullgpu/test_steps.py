"""What a step does on the host, counted: launches, waits for the GPU, copies, and the allocator's retries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.nullgpu.cases import SAVED_AT, count_passes, train_and_resume
from support.nullgpu.counters import host_waits
from support.nullgpu.pools import Pools
from support.nullgpu.table import tell_pass, tell_step

pytestmark = [pytest.mark.nullgpu, pytest.mark.slow]

WARM = SAVED_AT - 1  # the step before the first checkpoint: nothing is made for the first time, and nothing is saved
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "ddp int4": {"quantization": "int4"},
    "fsdp2": {"strategy": "fsdp2"},
    "zero-2": {"strategy": "deepspeed", "deepspeed": {"stage": 2}},
    "zero-3": {"strategy": "deepspeed", "deepspeed": {"stage": 3}},
}
# Waits for the GPU, and copies of pageable memory, in a step on one rank and on two.
# Ours: for the losses and for the norm of the gradients, and one for what ranks agree on (under fsdp2, passes besides).
# The rest is DeepSpeed's own; under ZeRO-3 it waits for each parameter.
LIMITS: dict[tuple[str, int], tuple[int, int]] = {
    ("ddp", 1): (2, 0),
    ("ddp int4", 1): (2, 0),
    ("fsdp2", 1): (2, 0),
    ("zero-2", 1): (12, 2),
    ("zero-3", 1): (200, 8),
    ("ddp", 2): (3, 0),
    ("ddp int4", 2): (3, 0),
    ("fsdp2", 2): (4, 0),
    ("zero-2", 2): (14, 2),
    ("zero-3", 2): (200, 8),
}


@pytest.mark.parametrize(("name", "ranks"), LIMITS)
def test_a_step_waits_for_the_gpu_no_more_than_it_must(
    pools: Pools, small_model: str, tmp_path: Path, name: str, ranks: int
) -> None:
    (report,) = pools.alone(ranks).run(train_and_resume, small_model, str(tmp_path), STRATEGIES[name])
    step, (waits, pageable) = report.counted[WARM], LIMITS[name, ranks]
    tell_step(name, ranks, step, report.retries)
    assert host_waits(step) <= waits
    assert step["pageable_copies"] <= pageable
    assert report.retries == 0


@pytest.mark.parametrize(("how", "most"), [("compiled", 700), ("not compiled", 1950)])
def test_a_pass_of_the_1b_takes_few_launches(pools: Pools, how: str, most: int) -> None:
    (outcome,) = pools.alone(1).run(count_passes, how == "compiled")
    tell_pass(f"1B pass of 2,048 tokens, {how}", outcome.counted, outcome.milliseconds)
    assert outcome.counted["launches"] <= most
    assert outcome.counted["pageable_copies"] == 0

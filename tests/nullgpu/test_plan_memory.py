"""The plan's memory beside what torch's own allocator reserves, for all sizes: kernels do nothing, tensors are real."""

from __future__ import annotations

import pytest
from support.nullgpu.device import PretendedGpu
from support.nullgpu.plan_case import MemoryCase, measure
from support.nullgpu.pools import Pools

pytestmark = [pytest.mark.nullgpu, pytest.mark.slow]

CASES = [
    MemoryCase("270m", 2048, 8),
    MemoryCase("270m", 2048, 8, checkpointing="selective"),
    MemoryCase("1b", 2048, 8),
    MemoryCase("1b", 2048, 8, checkpointing="selective"),
    MemoryCase("1b", 2048, 8, checkpointing="full"),
    MemoryCase("1b", 2048, 8, layers="compiled"),
    MemoryCase("1b", 2048, 8, checkpointing="selective", layers="compiled"),
    MemoryCase("1b", 2048, 8, layers="liger"),
    MemoryCase("1b", 2048, 8, checkpointing="selective", layers="liger"),
    MemoryCase("4b", 2048, 4, layers="liger"),
    MemoryCase("12b", 2048, 2, layers="liger"),
    MemoryCase("4b", 2048, 4),
    MemoryCase("4b", 2048, 4, checkpointing="selective"),
    MemoryCase("12b", 2048, 2, checkpointing="selective"),
    MemoryCase("27b", 2048, 1, checkpointing="full"),
    MemoryCase("27b", 2048, 1, checkpointing="selective", strategy="fsdp2", ranks=4),
    MemoryCase("27b", 2048, 1, checkpointing="selective", strategy="fsdp2", ranks=4, reshard=False),
    MemoryCase("12b", 2048, 2, checkpointing="selective", strategy="zero3", ranks=4),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_plan_is_within_a_tenth(pools: Pools, case: MemoryCase) -> None:
    (outcome,) = pools.alone(case.ranks, PretendedGpu(gib=190)).run(measure, case)
    print(f"{case}: {outcome.reserved_bytes / 2**30:.2f} GiB reserved, plan {outcome.planned_bytes / 2**30:.2f}")
    assert outcome.planned_bytes == pytest.approx(outcome.reserved_bytes, rel=0.10)
    assert outcome.retries == 0

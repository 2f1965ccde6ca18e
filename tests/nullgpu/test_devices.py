"""GPUs from a T4 to a B200: what is chosen on each compiles for it, fits its shared memory, trains and resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.nullgpu.cases import MORE_STEPS, STEPS, choices_here, train_and_resume
from support.nullgpu.device import PretendedGpu
from support.nullgpu.pools import Pools

pytestmark = [pytest.mark.nullgpu, pytest.mark.slow]

GPUS = [
    PretendedGpu("Tesla T4", "7.5", 15.8),
    PretendedGpu("NVIDIA A100-SXM4-40GB", "8.0", 39.4),
    PretendedGpu("NVIDIA GeForce RTX 3090", "8.6", 23.7),
    PretendedGpu("NVIDIA L4", "8.9", 22.0),
    PretendedGpu("NVIDIA H100 80GB HBM3", "9.0", 79.2),
    PretendedGpu("NVIDIA B200", "10.0", 178.4),
    PretendedGpu("NVIDIA GeForce RTX 5090", "12.0", 31.4),
]
WAYS: dict[str, dict[str, Any]] = {
    "as it comes": {"compile": "auto"},
    "not compiled": {},
    "int4": {"quantization": "int4"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: f"{gpu.capability} {gpu.name}")
def test_it_trains_on_this_gpu(pools: Pools, small_model: str, tmp_path: Path, gpu: PretendedGpu, way: str) -> None:
    pool = pools.alone(1, gpu)
    (found,) = pool.run(choices_here, small_model)
    before_ampere = gpu.capability.startswith("7")
    assert found.attention == ("sdpa" if before_ampere else "varlen")
    assert found.dtype == ("torch.float32" if before_ampere else "torch.bfloat16")
    assert found.compiled
    (report,) = pool.run(train_and_resume, small_model, str(tmp_path), WAYS[way])
    assert report.steps == STEPS + MORE_STEPS
    assert (report.refused_launches, report.retries) == (0, 0)

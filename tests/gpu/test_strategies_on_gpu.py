"""Every strategy on one GPU trains the run that DDP trains on the CPU; the plan foretells its memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from strategy_cases import train_case
from tiny_model import save_tiny_gemma3

pytestmark = pytest.mark.gpu

STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "fsdp2": {"strategy": "fsdp2"},
    "zero-1": {"strategy": "deepspeed", "deepspeed": {"stage": 1}},
    "zero-2": {"strategy": "deepspeed", "deepspeed": {"stage": 2}},
    "zero-3": {"strategy": "deepspeed", "deepspeed": {"stage": 3}},
}


@pytest.fixture
def group_of_one(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)
    dist.init_process_group("cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("name", STRATEGIES)
def test_one_gpu_trains_what_the_cpu_does(name: str, tmp_path: Path) -> None:
    model = str(save_tiny_gemma3(tmp_path / "model"))
    expected = train_case(model, str(tmp_path / "cpu"), STRATEGIES["ddp"])
    outcome = train_case(model, str(tmp_path / name), STRATEGIES[name], device="cuda")
    assert outcome.losses == pytest.approx(expected.losses, rel=1e-4)
    for key, values in expected.adapter.items():
        assert abs(outcome.adapter[key] - values).max() <= 1e-3 * abs(values).max()


@pytest.mark.parametrize("checkpointing", ["off", "full"])
def test_the_plan_foretells_the_memory_within_a_tenth(checkpointing: Any) -> None:
    """The 270M's shape with random weights; `max_memory_reserved` beside the plan without its guess of the runtime."""
    from gemfleet.benchmarks.plan.cases import Case
    from gemfleet.benchmarks.plan.child import config_of, train
    from gemfleet.benchmarks.plan.random_base import random_model
    from gemfleet.train.activation_checkpointing import checkpoint_layers
    from gemfleet.train.batch_finder.probe import worst_rows
    from gemfleet.train.planning import Sharing, Workload, memory_per_rank
    from gemfleet.train.planning.memory import CUDA_RUNTIME
    from gemfleet.train.strategies import build_strategy

    case = Case("270m", "bf16", 2048, 8, checkpointing=checkpointing)
    work = Workload(length=case.length, micro=case.micro, dtype=case.dtype)
    predicted = memory_per_rank(case.shape(), work, Sharing("ddp", checkpointing), ranks=1, device="cuda")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    model = random_model(case.shape(), torch.bfloat16, torch.device("cuda", 0))
    checkpoint_layers(model.layers, checkpointing)
    train(model, build_strategy(config_of(case)), worst_rows(case.micro, case.length, case.shape().vocabulary))
    measured = torch.cuda.max_memory_reserved() - before
    print(f"{case.name}: {measured / 2**30:.2f} GiB reserved, {predicted.total / 2**30:.2f} GiB foretold")
    assert predicted.total - CUDA_RUNTIME == pytest.approx(measured, rel=0.10)

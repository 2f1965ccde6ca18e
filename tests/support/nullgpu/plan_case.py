"""Two optimizer steps of a real size on a pretended GPU: what the allocator reserves beside what the plan says."""

from __future__ import annotations

import gc
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from unittest import mock

if TYPE_CHECKING:
    from gemfleet.benchmarks.plan.cases import Case
    from gemfleet.train.model.gemma import TrainableModel
    from gemfleet.train.planning.options import SharingName
    from gemfleet.train.strategies.base import Strategy
    from torch import Tensor


@dataclass(frozen=True)
class MemoryCase:
    """`micro` rows of `length` tokens in a pass; layers: who computes norms and gating."""

    size: str
    length: int
    micro: int
    checkpointing: Any = "off"
    strategy: Any = "ddp"
    ranks: int = 1
    reshard: bool = True
    layers: Literal["torch", "liger", "compiled"] = "torch"

    def __str__(self) -> str:
        shared = "" if self.ranks == 1 else f" {self.strategy}{'' if self.reshard else ' kept'} x{self.ranks}"
        return f"{self.size} {self.length}x{self.micro} {self.checkpointing} {self.layers}{shared}"


@dataclass(frozen=True)
class MemoryOutcome:
    """Bytes beyond what was reserved before; retries: of the allocator, which had to give memory back first."""

    reserved_bytes: int
    planned_bytes: int
    retries: int


def measure(case: MemoryCase) -> MemoryOutcome:
    """In a process of a pool whose group has the case's number of ranks."""
    import torch
    from gemfleet.benchmarks.plan.cases import Case
    from gemfleet.benchmarks.plan.child import config_of, train
    from gemfleet.train.batch_finder.probes.probe import worst_rows
    from gemfleet.train.kernels.capabilities import Choices
    from gemfleet.train.model.gemma import prepare_layers
    from gemfleet.train.planning import Workload, memory_per_rank
    from gemfleet.train.planning.memory import CUDA_RUNTIME
    from gemfleet.train.strategies import build_strategy, deepspeed, fsdp2

    plan = Case(
        case.size, "bf16", case.length, case.micro, None, case.checkpointing, case.strategy, case.ranks, case.reshard
    )
    compiled = case.layers == "compiled"
    ways: tuple[SharingName, ...] = ("ddp",) if compiled else ()
    elementwise: Any = "liger" if case.layers == "liger" else "torch"
    work = Workload(
        length=case.length,
        micro=case.micro,
        dtype="bf16",
        compiled=ways,
        fused=case.layers == "liger",
    )
    planned = memory_per_rank(plan.shape(), work, plan.sharing, ranks=case.ranks, device="cuda")
    torch._dynamo.reset()  # graphs of another case recompute as much as that did
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before, retries = torch.cuda.memory_reserved(), _retries()
    with mock.patch.object(fsdp2, "WeightFiles", NoFiles), mock.patch.object(deepspeed, "WeightFiles", NoFiles):
        strategy = build_strategy(config_of(plan))
        model = _model(plan, strategy)
        prepare_layers(model, Choices("varlen", elementwise, compiled, case.checkpointing))
        train(model, strategy, worst_rows(case.micro, case.length, plan.shape().vocabulary))
    reserved = torch.cuda.max_memory_reserved() - before
    return MemoryOutcome(reserved, planned.total - CUDA_RUNTIME, _retries() - retries)


def _model(plan: Case, strategy: Strategy) -> TrainableModel:
    """Weights of whatever memory holds: whole on the device, or placeholders of which `setup` makes a share."""
    import torch
    from gemfleet.benchmarks.shared.random_base import random_model, text_config
    from gemfleet.train.config.sections.recipe import LoraConfig
    from gemfleet.train.model.gemma import attach_lora

    device = torch.device("cuda", 0)
    if not plan.needs_files:
        return random_model(plan.shape(), torch.bfloat16, device)
    with tempfile.TemporaryDirectory() as folder:
        text_config(plan.shape()).save_pretrained(folder)
        base = strategy.load_base(Path(folder), torch.bfloat16, device)
        return attach_lora(base, LoraConfig(), 0, "random")


class NoFiles:
    """In the place of a base's files: rows of the right shape that nobody reads."""

    def __init__(self, folder: Path) -> None:
        import torch
        from gemfleet.train.model.lean import placeholder_model

        weights = placeholder_model(folder, torch.bfloat16).named_parameters()
        self._widths = {name: weight.shape[1:] for name, weight in weights}

    def rows(self, name: str, start: int, end: int) -> Tensor:
        import torch

        return torch.empty((end - start, *self._widths[name]), dtype=torch.bfloat16)


def _retries() -> int:
    import torch

    return int(torch.cuda.memory_stats().get("num_alloc_retries", 0))

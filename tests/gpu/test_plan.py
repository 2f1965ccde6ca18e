"""The memory that the plan foretells against what the allocator reserved: two steps of published sizes."""

from __future__ import annotations

import gc

import torch
from gemfleet.benchmarks.plan.cases import Case
from gemfleet.benchmarks.plan.child import config_of, train
from gemfleet.benchmarks.shared.random_base import random_model
from gemfleet.train.batch_finder.probes.probe import worst_rows
from gemfleet.train.kernels.activation_checkpointing import checkpoint_layers
from gemfleet.train.planning import Workload, memory_per_rank
from gemfleet.train.planning.memory import CUDA_RUNTIME
from gemfleet.train.strategies import build_strategy
from support.gpu_proof.stage import Stage

TOLERANCE = 0.10
CASES = (
    Case("270m", "bf16", 2048, 8),
    Case("1b", "bf16", 2048, 8),
    Case("1b", "bf16", 2048, 8, checkpointing="selective"),
    Case("1b", "fp32", 2048, 2, checkpointing="full"),
    Case("4b", "bf16", 2048, 4, checkpointing="selective"),
    Case("4b", "bf16", 2048, 16, checkpointing="full"),
)


def test_plan(stage: Stage) -> None:
    if not stage.on_cuda:
        stage.skip("the plan", "its figures for a CPU are measured by `gemfleet bench plan`")
        return
    for case in CASES[:1] if stage.quick else CASES:
        foretold = foretold_bytes(case)
        if foretold > 0.9 * torch.cuda.mem_get_info(stage.device)[0]:
            stage.skip(case.name, f"it needs {foretold / 2**30:.1f} GiB")
            continue
        measured = measured_bytes(stage, case)
        stage.note(**{case.name: {"foretold_bytes": foretold, "measured_bytes": measured}})
        stage.at_most(case.name, abs(foretold / measured - 1), TOLERANCE, computed=False)


def foretold_bytes(case: Case) -> int:
    """Without what the plan guesses for CUDA's context, which the allocator does not see."""
    work = Workload(length=case.length, micro=case.micro, dtype=case.dtype)
    return memory_per_rank(case.shape(), work, case.sharing, ranks=1, device="cuda").total - CUDA_RUNTIME


def measured_bytes(stage: Stage, case: Case) -> int:
    """What the allocator reserved at most, beyond what it held before."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(stage.device)
    before = torch.cuda.memory_reserved(stage.device)
    model = random_model(case.shape(), case.torch_dtype, stage.device)
    checkpoint_layers(model.layers, case.checkpointing)
    train(model, build_strategy(config_of(case)), worst_rows(case.micro, case.length, case.shape().vocabulary))
    return torch.cuda.max_memory_reserved(stage.device) - before

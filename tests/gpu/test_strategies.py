"""Every strategy on one rank trains in fp32 what DDP trains on the CPU, saves it, and goes on from there."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from support.gpu_proof.findings import apart, ratio
from support.gpu_proof.runs import SAVED, STEPS, Trained, resumed, saved_state, train
from support.gpu_proof.stage import CPU, Stage

STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "fsdp2": {"strategy": "fsdp2"},
    "fsdp2, offloaded": {"strategy": "fsdp2", "fsdp2": {"cpu_offload": True}},
    "zero-1": {"strategy": "deepspeed", "deepspeed": {"stage": 1}},
    "zero-2": {"strategy": "deepspeed", "deepspeed": {"stage": 2}},
    "zero-3": {"strategy": "deepspeed", "deepspeed": {"stage": 3}},
}
LOSSES, UPDATE, FIRST_LOSS, RESUMED_UPDATE = 1e-4, 5e-2, 1e-5, 2e-2


def test_strategies(stage: Stage) -> None:
    cpu = train(stage, stage.config(), "strategies-cpu", CPU)
    for name, changes in STRATEGIES.items():
        if "deepspeed" in changes and find_spec("deepspeed") is None:
            stage.skip(name, "deepspeed is not installed")
        elif "fsdp2" in changes and not stage.on_cuda:
            stage.skip(name, "the same as fsdp2 where there is no GPU")
        else:
            _prove_one(stage, name, changes, cpu)


def _prove_one(stage: Stage, name: str, changes: dict[str, Any], cpu: Trained) -> None:
    config = stage.config(**changes)
    whole = train(stage, config, f"strategies-{name}")
    losses = max(ratio(ours, exact) for ours, exact in zip(whole.losses, cpu.losses, strict=True))
    stage.at_most(f"{name}: losses beside the CPU's", losses, LOSSES)
    stage.at_most(f"{name}: adapters beside the CPU's", apart(whole.update, cpu.update), UPDATE)
    rest = resumed(stage, config, whole, f"strategies-{name}-rest")
    stage.holds(f"{name}: resumed in the middle", len(rest.losses) == STEPS - SAVED, f"{len(rest.losses)} steps")
    adapter, optimizer = saved_state(whole)
    stage.at_most(f"{name}: restored adapters", apart(rest.began[0], adapter), 0.0)
    stage.at_most(f"{name}: restored optimizer", apart(rest.began[1], optimizer), 0.0)
    stage.at_most(f"{name}: first loss after it", ratio(rest.losses[0], whole.losses[SAVED]), FIRST_LOSS)
    stage.at_most(f"{name}: adapters at the end", apart(rest.update, whole.update), RESUMED_UPDATE)

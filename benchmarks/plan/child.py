"""Train two steps in a fresh process and tell its memory.

The baseline is the resident set once everything is imported; the peak is the kernel's own high-water mark since then.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from gemfleet.benchmarks.shared.processes import process_group
from gemfleet.benchmarks.shared.random_base import random_model
from gemfleet.train.batch_finder.probes.probe import worst_rows
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.device.abilities import prepare_process
from gemfleet.train.device.memory import forget_resident_peak, peak_resident_bytes, resident_bytes
from gemfleet.train.interfaces import PackedRows
from gemfleet.train.kernels.activation_checkpointing import checkpoint_layers
from gemfleet.train.model.gemma import TrainableModel, attach_lora
from gemfleet.train.strategies import build_strategy
from gemfleet.train.strategies.base import Strategy

from .cases import CASES, Case

STEPS = 2
IMPORTED = ("transformers.models.gemma3.modeling_gemma3", "peft", "deepspeed", "torch.distributed.fsdp")


def train_rank(task: Mapping[str, Any], tell: Callable[[dict[str, int]], None]) -> None:
    """Tells `baseline_bytes`, and `measured_bytes`: the peak beyond it over two optimizer steps."""
    case = CASES[task["case"]]
    prepare_process(ranks_on_node=case.ranks)
    torch.set_num_threads(task["threads"])
    with process_group(task["work"]) if case.ranks > 1 else nullcontext():
        for module in IMPORTED if case.ranks > 1 else IMPORTED[:2]:
            importlib.import_module(module)
        forget_resident_peak()  # that of importing
        baseline = resident_bytes()
        strategy = build_strategy(config_of(case))
        model = base_with_adapters(case, strategy, Path(task["weights"]))
        checkpoint_layers(model.layers, case.checkpointing)
        train(model, strategy, worst_rows(case.micro, case.length, case.shape().vocabulary))
        tell({"measured_bytes": peak_resident_bytes() - baseline, "baseline_bytes": baseline})


def base_with_adapters(case: Case, strategy: Strategy, folder: Path) -> TrainableModel:
    """Random weights: made here where each rank has them whole, else read from the folder as training does."""
    if not case.needs_files:
        return random_model(case.shape(), case.torch_dtype)
    config = config_of(case)
    base = strategy.load_base(folder, case.torch_dtype, torch.device("cpu"))
    return attach_lora(base, config.lora, config.seed, "random")


def config_of(case: Case) -> TrainConfig:
    """The configuration of a run that would share the work as the case does."""
    fields: dict[str, object] = {"strategy": case.strategy}
    if case.strategy == "fsdp2":
        fields["fsdp2"] = {"reshard_after_forward": case.reshard}
    if case.strategy.startswith("zero"):
        fields = {"strategy": "deepspeed", "deepspeed": {"stage": int(case.strategy.removeprefix("zero"))}}
    fields["activation_checkpointing"] = case.checkpointing
    return TrainConfig.model_validate({"model": "random", "data": {"train": "none"}, **fields})


def train(model: TrainableModel, strategy: Strategy, rows: PackedRows) -> None:
    """Steps as the loop takes them, of one pass each."""
    model = strategy.setup(model)
    for _ in range(STEPS):
        strategy.passes(1)
        loss = model.loss_sum(rows)
        strategy.backward(loss / rows.supervised_tokens)
        strategy.reduce_gradients()
        strategy.clip(1.0)
        strategy.step(1e-4)

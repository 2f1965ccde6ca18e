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
from gemfleet.benchmarks.training.case import strategy_fields
from gemfleet.train.batch_finder.probes.probe import worst_rows
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.device.abilities import prepare_process
from gemfleet.train.device.memory import forget_resident_peak, peak_resident_bytes, resident_bytes
from gemfleet.train.interfaces import PackedRows
from gemfleet.train.kernels.activation_checkpointing import checkpoint_layers
from gemfleet.train.model.gemma import TrainableModel, attach_lora
from gemfleet.train.strategies import build_strategy
from gemfleet.train.strategies.base import Strategy
from gemfleet.train.worker import in_context

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
        if case.quantization != "none":
            importlib.import_module("bitsandbytes")
        forget_resident_peak()  # that of importing
        baseline = resident_bytes()
        config = config_of(case)
        strategy = build_strategy(config)
        if case.needs_files:  # read as training does; else each rank has them whole and makes them here
            base = strategy.load_base(Path(task["weights"]), case.torch_dtype, torch.device("cpu"))
            model = attach_lora(base, config.lora, config.seed, "random")
        else:
            model = random_model(case.shape(), case.torch_dtype)
        model = in_context(model, config)
        checkpoint_layers(model.layers, case.checkpointing)
        train(model, strategy, worst_rows(case.micro, case.length, case.shape().vocabulary))
        tell({"measured_bytes": peak_resident_bytes() - baseline, "baseline_bytes": baseline})


def config_of(case: Case) -> TrainConfig:
    """The configuration of a run that would share the work as the case does."""
    fields = strategy_fields(case.strategy)
    fields |= {"fsdp2": {"reshard_after_forward": case.reshard}} if case.strategy == "fsdp2" else {}
    fields |= {"quantization": case.quantization, "context_parallel": case.context}
    given = {"model": "random", "data": {"train": "none"}, "activation_checkpointing": case.checkpointing}
    return TrainConfig.model_validate({**given, **fields})


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

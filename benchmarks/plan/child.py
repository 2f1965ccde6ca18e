"""`python -m ....plan.child CASE THREADS FOLDER RANK`: train two steps in this fresh process, print its memory as JSON.

The baseline is the resident set once everything is imported; the peak is the kernel's own high-water mark since then.
FOLDER: where the ranks of a case meet, and where the weights lie that they divide.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from gemfleet.train.batch_finder.probes.probe import worst_rows
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.device.abilities import prepare_process
from gemfleet.train.device.memory import forget_resident_peak, peak_resident_bytes, resident_bytes
from gemfleet.train.interfaces import PackedRows
from gemfleet.train.kernels.activation_checkpointing import checkpoint_layers
from gemfleet.train.model.gemma import TrainableModel, attach_lora
from gemfleet.train.strategies import build_strategy
from gemfleet.train.strategies.base import Strategy

from ..shared.random_base import random_model
from .cases import CASES, Case

STEPS = 2
IMPORTED = ("transformers.models.gemma3.modeling_gemma3", "peft", "deepspeed", "torch.distributed.fsdp")


def main() -> None:
    """Measure the case named on the command line."""
    name, threads, folder, rank = sys.argv[1:]
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever libraries print is no event
    case = CASES[name]
    prepare_process(ranks_on_node=case.ranks)
    torch.set_num_threads(int(threads))
    if case.ranks > 1:
        os.environ.update(GLOO_SOCKET_IFNAME="lo", RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=str(case.ranks))
        store = dist.FileStore(str(Path(folder) / "rendezvous"), case.ranks)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=int(rank), world_size=case.ranks)
    for module in IMPORTED if case.ranks > 1 else IMPORTED[:2]:
        importlib.import_module(module)
    print(json.dumps(measure(case, Path(folder))), file=events, flush=True)
    os._exit(0)  # ranks need not wait for one another's destructors


def measure(case: Case, folder: Path) -> dict[str, int]:
    """Bytes: the baseline, and the peak beyond it over two optimizer steps."""
    forget_resident_peak()  # that of importing
    baseline = resident_bytes()
    strategy = build_strategy(config_of(case))
    model = base_with_adapters(case, strategy, folder)
    checkpoint_layers(model.layers, case.checkpointing)
    train(model, strategy, worst_rows(case.micro, case.length, case.shape().vocabulary))
    return {"baseline_bytes": baseline, "peak_bytes": peak_resident_bytes() - baseline}


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


if __name__ == "__main__":
    main()

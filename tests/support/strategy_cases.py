"""The same seeded fp32 run on a tiny Gemma 3 under any strategy, called on every rank of a `RankPool`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from gemfleet.train.batch_finder.probes.probe import worst_rows
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.device.abilities import DeviceFacts
from gemfleet.train.interfaces import WriteCheckpoint
from gemfleet.train.kernels.capabilities import choose
from gemfleet.train.local.devices import rank_devices
from gemfleet.train.local.source import LocalBlockSource
from gemfleet.train.loop import Trainer
from gemfleet.train.model.gemma import attach_lora, prepare_layers
from gemfleet.train.planning.auto_strategy import RankDevices
from gemfleet.train.strategies import build_strategy
from gemfleet.train.worker import in_context, prepare_model
from numpy.typing import NDArray
from support.reference_step import examples
from torch.distributed.tensor import DTensor

Arrays = dict[str, NDArray[np.float32]]
# Tiny tensors would stay gathered under ZeRO-3, which is what tests are to see divided.
DIVIDE_ALL = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "fsdp2": {"strategy": "fsdp2"},
    "zero-1": {"strategy": "deepspeed", "deepspeed": {"stage": 1}},
    "zero-2": {"strategy": "deepspeed", "deepspeed": {"stage": 2}},
    "zero-3": {"strategy": "deepspeed", "deepspeed": {"stage": 3, "config": DIVIDE_ALL}},
}


@dataclass(frozen=True)
class Outcome:
    """What a run came to on one rank: losses by step, evaluation losses, and the gathered state at its end.

    counted: FLOPs, tokens with padding, tokens and examples of each step that the rank reported
    """

    losses: dict[int, float]
    evaluations: list[float]
    grad_norms: list[float]
    adapter: Arrays
    optimizer: Arrays
    counted: list[tuple[float, ...]]


class FolderReporter:
    """Keeps checkpoints in a shared folder and records in a list."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: list[dict[str, Any]] = []

    def log_step(self, record: Mapping[str, Any]) -> None:
        self.records.append(dict(record))

    def progress(self, phase: str) -> None:
        """No watchdog here."""

    def tell(self, kind: str, sentence: str, facts: Mapping[str, Any]) -> None:
        self.records.append({"kind": kind, "sentence": sentence, **facts})

    def save_checkpoint(self, step: int, write: WriteCheckpoint | None, metrics: Mapping[str, float]) -> None:
        if write is not None:
            folder = self.folder / f"checkpoint-{step}"
            folder.mkdir()
            write(folder)
        dist.barrier()

    def finish(self) -> None:
        dist.barrier()

    def latest_checkpoint(self, destination: Path) -> Path | None:
        steps = [int(p.name.removeprefix("checkpoint-")) for p in self.folder.glob("checkpoint-*")]
        return self.folder / f"checkpoint-{max(steps)}" if steps else None

    def should_stop(self) -> bool:
        return False


def strategy_config(**changes: Any) -> TrainConfig:
    """Three examples a step: on four ranks one has none, and with one row a pass the ranks differ in passes."""
    values = {
        "model": "tiny",
        "data": {"train": "x.jsonl", "max_length": 64},
        "lora": {"r": 4, "dropout": 0.0},
        "batch": {"global": 3, "micro": 1},
        "strategy": "ddp",
        "activation_checkpointing": "off",
        "optim": {"learning_rate": 0.002, "max_grad_norm": 0.5, "weight_decay": 0.01},
        "epochs": 7.0,
        "max_steps": 20,
        "precision": "fp32",
        "checkpoint": {"every": 10},
    }
    return TrainConfig.model_validate({**values, **changes})


def train_case(model_folder: str, folder: str, changes: dict[str, Any], device: str = "cpu") -> Outcome:
    """Train in the process group that is up, resuming from the newest checkpoint below `folder`. Collective."""
    config = strategy_config(**changes)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    Path(folder).mkdir(parents=True, exist_ok=True)
    work = Path(folder) / f"work-{rank}"
    work.mkdir(exist_ok=True)
    source = LocalBlockSource(
        examples(),
        {"eval": examples(seed=1)},
        global_batch=config.batch.global_,
        max_length=config.data.max_length,
        seed=config.seed,
        world_size=config.data_ranks(world_size),
    )
    strategy = build_strategy(config)
    dtype = torch.float32 if config.precision == "fp32" else torch.bfloat16
    base = strategy.load_base(Path(model_folder), dtype, torch.device(device))
    start = None if config.adapter is None else Path(config.adapter)
    model = attach_lora(base, config.lora, config.seed, "tiny", start)
    prepare_layers(model, choose(config, model.device, dtype))
    reporter = FolderReporter(Path(folder))
    trainer = Trainer(config, in_context(model, config), strategy, source, reporter, rank, work)
    trainer.run()
    history = trainer.progress.log_history
    adapter, optimizer = strategy.gather_adapter(), strategy.gather_optimizer()
    return Outcome(
        {e["step"]: e["loss"] for e in history if "loss" in e},
        [e["eval_loss"] for e in history if "eval_loss" in e],
        [e["grad_norm"] for e in history if "grad_norm" in e],
        _as_arrays(adapter),
        _as_arrays(optimizer),
        [(r["flops"], r["raw_tokens"], r["tokens"], r["examples"]) for r in reporter.records if r["kind"] == "step"],
    )


def _as_arrays(state: dict[str, torch.Tensor]) -> Arrays:
    """As numpy, which crosses a pipe by value."""
    return {name: tensor.numpy() for name, tensor in state.items()}


def base_bytes(model_folder: str, changes: dict[str, Any]) -> tuple[int, int]:
    """Bytes of the base that this rank holds once it is set up, and of the whole base. Collective."""
    config = strategy_config(**changes)
    strategy = build_strategy(config)
    base = strategy.load_base(Path(model_folder), torch.float32, torch.device("cpu"))
    model = strategy.setup(attach_lora(base, config.lora, config.seed, "tiny"))
    held = whole = 0
    for parameter in model.peft_model.get_base_model().model.parameters():
        if not parameter.requires_grad:
            here = (
                parameter.to_local() if isinstance(parameter, DTensor) else getattr(parameter, "ds_tensor", parameter)
            )
            held += here.untyped_storage().nbytes()
            whole += math.prod(getattr(parameter, "ds_shape", parameter.shape)) * parameter.element_size()
    return held, whole


def chunk_of_logits(model_folder: str, changes: dict[str, Any]) -> int:
    """Rows of the logits that exist at once in a pass of full rows, by the buffers that the loss keeps. Collective."""
    config = strategy_config(**changes)
    facts = DeviceFacts(torch.device("cpu"), "cpu", bf16_gains=False)
    model, strategy = prepare_model(config, Path(model_folder), facts)
    model = strategy.setup(model)
    strategy.passes(1)
    strategy.backward(model.loss_sum(worst_rows(1, config.data.max_length, 512)))
    assert model.criterion._blocks is not None
    return len(model.criterion._blocks._buffers[0]) // 512


def devices_of_unequal_ranks() -> RankDevices:
    """What all ranks have at least, where rank 1 may use far less than rank 0. Collective."""
    limit = "8GiB" if dist.get_rank() == 0 else "700MiB"
    return rank_devices(strategy_config(batch={"global": 3, "device_memory_limit": limit}), 0, dist.get_world_size())


def reduce_bucket(model_folder: str, changes: dict[str, Any]) -> tuple[int, int]:
    """Values that DeepSpeed's buffer for gradients has room for, and values that are trained. Collective."""
    config = strategy_config(**changes)
    strategy: Any = build_strategy(config)
    base = strategy.load_base(Path(model_folder), torch.float32, torch.device("cpu"))
    model = attach_lora(base, config.lora, config.seed, "tiny")
    trained = sum(parameter.numel() for parameter in model.adapter_parameters().values())
    strategy.setup(model)
    return strategy._optimizer.reduce_bucket_size, trained

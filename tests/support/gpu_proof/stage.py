"""What every part works with: the device, a small model with each of Gemma 3's mechanisms, documents, a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gemfleet.benchmarks.shared.random_base import save_random_base
from gemfleet.benchmarks.training.rows import random_documents
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.data.packing import pack_block
from gemfleet.train.device.abilities import DeviceFacts
from gemfleet.train.interfaces import PackedRows
from gemfleet.train.model.gemma import TrainableModel
from gemfleet.train.planning import ModelShape
from gemfleet.train.worker import prepare_model
from support.gpu_proof.findings import Findings
from torch import Tensor

CPU = DeviceFacts(torch.device("cpu"), "CPU", True)

# Windows, global layers and grouped queries as the published sizes have them, small enough for the CPU to follow.
PROOF = ModelShape(
    name="proof",
    layers=6,
    hidden=640,
    inner=2048,
    heads=4,
    kv_heads=1,
    head_dim=256,
    window=512,
    sliding_layers=5,
    vocabulary=32_768,
)
QUICK = ModelShape(
    name="quick",
    layers=6,
    hidden=64,
    inner=128,
    heads=4,
    kv_heads=1,
    head_dim=32,
    window=32,
    sliding_layers=5,
    vocabulary=512,
)


@dataclass
class Stage(Findings):
    """facts: of the device under proof; folder: scratch of all parts; quick: the least that shows that a part works."""

    facts: DeviceFacts = CPU
    folder: Path = Path()
    quick: bool = False

    @property
    def device(self) -> torch.device:
        return self.facts.device

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def shape(self) -> ModelShape:
        return QUICK if self.quick else PROOF

    @property
    def documents(self) -> tuple[int, ...]:
        """Lengths of one pass: longer than the window, shorter, and single tokens."""
        return (50, 1, 9, 70, 33, 1, 12) if self.quick else (700, 1, 5, 512, 43, 1, 90)

    @property
    def row_tokens(self) -> int:
        return 96 if self.quick else 768

    def model_folder(self) -> Path:
        """The weights of `shape`, random, in fp32; written once for all parts."""
        folder = self.folder / f"model-{self.shape.name}"
        if not (folder / "model.safetensors").exists():
            folder.mkdir(parents=True, exist_ok=True)
            save_random_base(self.shape, torch.float32, folder)
        return folder

    def config(self, **changes: Any) -> TrainConfig:
        """A run of six steps of eight examples, two rows in a pass, saved in the middle. Nothing is left to defaults
        that depend on the device."""
        values: dict[str, Any] = {
            "model": str(self.model_folder()),
            "data": {"train": "in memory", "max_length": self.row_tokens},
            "lora": {"r": 8, "alpha": 16.0},
            "batch": {"global": 8, "micro": 2},
            "optim": {"learning_rate": 1e-3, "weight_decay": 0.01},
            "precision": "fp32",
            "strategy": "ddp",
            "compile": False,
            "activation_checkpointing": "off",
            "evaluation": {"every": "never"},
            "checkpoint": {"every": 3},
        }
        return TrainConfig.model_validate({**values, **changes})

    def model(self, config: TrainConfig, facts: DeviceFacts | None = None) -> TrainableModel:
        """Loaded and prepared as for training, with adapters that are all non-zero, so that every gradient is."""
        model, _ = prepare_model(config, self.model_folder(), facts or self.facts)
        fill_adapters(model.adapter_parameters())
        return model

    def rows(self, seed: int = 0) -> PackedRows:
        """One pass over `documents` without the last `seed` of them, in another order for each seed."""
        chosen = np.random.default_rng(seed).permutation(self.documents[: len(self.documents) - seed])
        return pack_block(random_documents(self.shape.vocabulary, chosen.tolist(), seed), self.row_tokens)


def initial_adapters(shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Random values on the CPU, the same on every device and under every strategy."""
    generator = torch.Generator().manual_seed(11)
    return {name: torch.randn(shapes[name], generator=generator) * 0.05 for name in sorted(shapes)}


def fill_adapters(parameters: Mapping[str, torch.nn.Parameter]) -> None:
    for name, values in initial_adapters({name: p.shape for name, p in parameters.items()}).items():
        parameters[name].data.copy_(values)


def gradients(model: TrainableModel, rows: PackedRows) -> tuple[float, dict[str, Tensor]]:
    """The mean loss of one pass, and what it gives each adapter."""
    model.peft_model.zero_grad()
    loss = model.loss_sum(rows) / rows.supervised_tokens
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.adapter_parameters().items() if p.grad is not None}
    return float(loss.detach()), found

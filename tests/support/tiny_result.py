"""The result of a tiny run, as it is published, without a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from gemfleet.launcher.config.schema import OutputConfig
from gemfleet.launcher.result.publish import Publication, publish
from gemfleet.train.checkpoint.state import Progress, save_checkpoint
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.config.sections.recipe import LoraConfig
from gemfleet.train.model.gemma import attach_lora, load_base_model
from support.tiny_model import save_tiny_gemma3
from support.tiny_tokenizer import tiny_tokenizer


def tiny_base(folder: Path) -> Path:
    """A tiny model with its tokenizer."""
    save_tiny_gemma3(folder)
    tiny_tokenizer(folder)
    return folder


def tiny_result(
    folder: Path,
    model: Path,
    base: str,
    row_format: str,
    lora: LoraConfig = LoraConfig(r=2),
    pictures: int = 0,
    **output: Any,
) -> Path:
    """A published adapter that changes the model's answers. base: what the person called the folder `model`."""
    values = {"model": base, "data": {"train": "rows.jsonl"}, "batch": {"micro": 1}}
    config = TrainConfig.model_validate(values)
    trainable = attach_lora(load_base_model(model, torch.float32, torch.device("cpu")), lora, 0, base)
    for name, parameter in trainable.adapter_parameters().items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapter = {name: parameter.detach() for name, parameter in trainable.adapter_parameters().items()}
    progress = Progress(step=1, epoch=1.0, total_steps=1, log_history=[{"epoch": 1.0, "step": 1, "loss": 6.1}])
    save_checkpoint(folder / "checkpoint-1", trainable, adapter, {"x": torch.ones(1)}, progress, config)
    facts = {"format": row_format, "pictures": pictures}
    return publish(Publication(folder, folder / "checkpoint-1", model, base, OutputConfig(**output), facts))

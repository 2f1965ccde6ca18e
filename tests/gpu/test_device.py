"""What this device is, what training would choose on it, and what its matrix products and its memory reach."""

from __future__ import annotations

import torch
from gemfleet.benchmarks.shared.ceiling import matmul_flops_per_second, seconds_of
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.device.abilities import choose_dtype
from gemfleet.train.kernels.capabilities import abilities_of, choose
from gemfleet.train.step.throughput import rated_flops_per_second
from support.gpu_proof.stage import Stage

COPY_BYTES = 2**32


def test_device(stage: Stage) -> None:
    named = {"strategy": "ddp", "activation_checkpointing": "off", "batch": {"micro": 1}}
    config = TrainConfig.model_validate({"model": "random", "data": {"train": "in memory"}, **named})
    able, dtype = abilities_of(stage.device), choose_dtype("auto", stage.facts)
    choices = choose(config.with_micro(1), stage.device, dtype)
    stage.note(
        name=stage.facts.name, capability=able.capability, dtype=str(dtype), choices=choices.describe(), able=vars(able)
    )
    if stage.on_cuda:
        stage.holds("capability is the device's", able.capability == torch.cuda.get_device_capability())
        stage.holds("layers are compiled where torch can", choices.compile == able.compiler, choices.describe())
        modern = torch.cuda.get_device_capability() >= (8, 0)
        stage.holds("bf16 from Ampere on", stage.facts.bf16_gains == modern)
        stage.holds("the variable-length kernel from Ampere on", (choices.attention == "varlen") == modern)
        stage.note(memory_bytes=torch.cuda.get_device_properties(stage.device).total_memory)
    _note_rates(stage, dtype)


def _note_rates(stage: Stage, dtype: torch.dtype) -> None:
    """Matrix products in the dtype of training, beside the data sheet; and a copy within the device's memory."""
    size = COPY_BYTES // 2**10 if stage.quick else COPY_BYTES
    source = torch.empty(size, dtype=torch.uint8, device=stage.device)
    target = torch.empty_like(source)
    seconds = min(seconds_of(lambda: target.copy_(source)) for _ in range(3))
    stage.note(
        matmul_flops_per_second=matmul_flops_per_second(stage.device, dtype),
        rated_flops_per_second=rated_flops_per_second(stage.device, dtype),
        copy_bytes_per_second=2 * size / seconds,
    )

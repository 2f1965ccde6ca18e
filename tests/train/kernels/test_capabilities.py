"""What is chosen on which device: by one pure function, so that no GPU is needed to see the choice for one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.kernels.capabilities import Abilities, abilities_of, best_attention, choose, choose_by

CPU = Abilities()
HOPPER, AMPERE, TURING = (Abilities(capability=c) for c in ((9, 0), (8, 0), (7, 5)))
OLD_TORCH = Abilities(capability=(9, 0), varlen=False)


def config(**changes: Any) -> TrainConfig:
    values = {"model": "demo", "data": {"train": "demo", "max_length": 64}, "batch": {"micro": 3}}
    settled = {"strategy": "ddp", "activation_checkpointing": "off"}
    return TrainConfig.model_validate({**values, **settled, **changes})


@pytest.mark.parametrize(
    ("able", "dtype", "kernel"),
    [
        (HOPPER, torch.bfloat16, "varlen"),
        (AMPERE, torch.bfloat16, "varlen"),
        (AMPERE, torch.float32, "sdpa"),
        (TURING, torch.bfloat16, "sdpa"),
        (OLD_TORCH, torch.bfloat16, "flex"),
        (OLD_TORCH, torch.float32, "sdpa"),
        (Abilities(capability=(9, 0), varlen=False, triton=False), torch.bfloat16, "sdpa"),
        (CPU, torch.bfloat16, "blocks"),
    ],
)
def test_the_attention_kernel(able: Abilities, dtype: torch.dtype, kernel: str) -> None:
    assert best_attention(able, dtype) == kernel


@pytest.mark.parametrize(
    ("changes", "able", "compiled"),
    [
        ({}, CPU, False),
        ({}, HOPPER, True),
        ({"compile": True}, CPU, True),
        ({"compile": False}, HOPPER, False),
        ({"quantization": "int4"}, HOPPER, False),
        ({"strategy": "fsdp2"}, HOPPER, False),
        ({}, Abilities(capability=(9, 0), compiler=False), False),
        ({}, Abilities(capability=(9, 0), triton=False), False),
    ],
)
def test_what_is_compiled(changes: Any, able: Abilities, compiled: bool) -> None:
    choices = choose_by(config(**changes), able, torch.float32)
    assert choices.compile == compiled
    assert ("compiled once for passes of any length" in choices.describe()) == compiled


@pytest.mark.parametrize(
    ("changes", "able", "kernels"),
    [
        ({"compile": False}, Abilities(capability=(9, 0), liger=True), "liger"),
        ({"quantization": "int4"}, Abilities(capability=(9, 0), liger=True), "liger"),
        ({}, Abilities(capability=(9, 0), liger=True), "torch"),  # compiled, which fuses them as well
        ({"compile": False}, HOPPER, "torch"),
        ({"compile": False}, Abilities(capability=(9, 0), liger=True, triton=False), "torch"),
        ({}, Abilities(liger=True), "c++"),
        ({"compile": True}, CPU, "torch"),
        ({}, Abilities(compiler=False), "torch"),
    ],
)
def test_norms_and_geglu(changes: Any, able: Abilities, kernels: str) -> None:
    choices = choose_by(config(**changes), able, torch.bfloat16)
    assert choices.elementwise == kernels
    assert f"norms and GeGLU: {kernels}" in choices.describe()


def test_this_cpu_takes_nothing_that_needs_a_gpu() -> None:
    cpu = torch.device("cpu")
    assert abilities_of(cpu).capability is None
    choices = choose(config(), cpu, torch.bfloat16)
    assert (choices.attention, choices.elementwise, choices.compile) == ("blocks", "c++", False)
    assert choose(config(), cpu, torch.float32).elementwise == "torch"

"""Chooses how a pass is computed, by what the device, torch and the configuration allow. No other place chooses."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch

from ..config.schema import ActivationCheckpointing, TrainConfig
from .compilation import SELECTIVE_BUDGET, has_compiler, triton_builds

AttentionKernel = Literal["varlen", "flex", "blocks", "sdpa"]
Elementwise = Literal["liger", "c++", "torch"]
KERNEL_NAMES = {
    "varlen": "variable-length kernel",
    "flex": "flex attention",
    "blocks": "matrix products over blocks",
    "sdpa": "SDPA for each document",
}


@dataclass(frozen=True)
class Abilities:
    """What a device and the installed libraries offer.

    capability: CUDA's compute capability; None on a CPU
    varlen:     torch has `torch.nn.attention.varlen`
    triton:     Triton is installed and can build its kernels
    liger:      Liger Kernel is installed
    compiler:   torch finds a C++ compiler
    """

    capability: tuple[int, int] | None = None
    varlen: bool = True
    triton: bool = True
    liger: bool = False
    compiler: bool = True


@dataclass(frozen=True)
class Choices:
    """How the passes of a run are computed.

    attention: one kernel for all documents, or one SDPA call for each
    pictures: the kernel for passes with pictures; None: the run has none
    elementwise: who computes norms and the MLP's gating in layers that are not compiled
    activation_checkpointing: as configured
    """

    attention: AttentionKernel
    elementwise: Elementwise
    compile: bool
    activation_checkpointing: ActivationCheckpointing
    pictures: AttentionKernel | None = None

    def describe(self) -> str:
        """One line for the log."""
        attention = KERNEL_NAMES[self.attention]
        if self.pictures not in (None, self.attention):
            attention += f"; with pictures {KERNEL_NAMES[self.pictures]}"
        compiled = "layers compiled once for passes of any length" if self.compile else "layers not compiled"
        recompute: str = self.activation_checkpointing
        if self.compiler_recomputes:
            recompute = f"selective, by the compiler, down to {SELECTIVE_BUDGET:.0%} of what it would keep"
        return (
            f"attention: {attention}; norms and GeGLU: {self.elementwise}; {compiled}; "
            f"recomputation: {recompute}; AdamW: fused"
        )

    @property
    def attention_in_graphs(self) -> bool:
        """Whether attention is a part of compiled layers: one kernel takes the documents of all passes as a tensor."""
        return self.attention == "varlen" and self.pictures is None

    @property
    def compiler_recomputes(self) -> bool:
        """Whether the compiler does the work of `selective`: it knows which of its code is cheap to run again."""
        return self.compile and self.activation_checkpointing == "selective"


@cache
def abilities_of(device: torch.device) -> Abilities:
    """Looks at the device and at what is installed, once."""
    return Abilities(
        capability=torch.cuda.get_device_capability(device) if device.type == "cuda" else None,
        varlen=_is_installed("torch.nn.attention.varlen"),
        triton=triton_builds(),
        liger=_is_installed("liger_kernel"),
        compiler=has_compiler(),
    )


def choose(config: TrainConfig, device: torch.device, dtype: torch.dtype, pictures: bool = False) -> Choices:
    """What this run uses on this device. pictures: whether its data have some"""
    return choose_by(config, abilities_of(device), dtype, pictures)


def choose_by(config: TrainConfig, able: Abilities, dtype: torch.dtype, pictures: bool = False) -> Choices:
    """What this run uses with these abilities."""
    compiled = _compile(config, able)
    return Choices(
        attention=best_attention(able, dtype),
        elementwise=_elementwise(able, compiled, dtype),
        compile=compiled,
        activation_checkpointing=config.recomputation,
        pictures=best_attention(able, dtype, pictures=True) if pictures else None,
    )


def attention_kernel(device: torch.device, dtype: torch.dtype, pictures: bool = False) -> AttentionKernel:
    """The kernel that computes attention on this device. pictures: of a pass that holds some"""
    return best_attention(abilities_of(device), dtype, pictures)


def best_attention(able: Abilities, dtype: torch.dtype, pictures: bool = False) -> AttentionKernel:
    """The fastest kernel for attention. The variable-length kernel cannot let a picture's tokens see later ones.

    torch's variable-length kernel is FlashAttention: it needs an Ampere GPU or newer, and 16-bit numbers. Flex
    attention has the same conditions here, as heads of 256 fp32 values do not fit into its blocks. For bf16 on a CPU,
    `attention/blocks.py` is faster than torch's kernel.
    """
    if able.capability is None and dtype == torch.bfloat16:
        return "blocks"
    if able.capability is None or able.capability < (8, 0) or dtype not in (torch.bfloat16, torch.float16):
        return "sdpa"
    if able.varlen and not pictures:
        return "varlen"
    return "flex" if able.triton and able.compiler else "sdpa"


def _elementwise(able: Abilities, compiled: bool, dtype: torch.dtype) -> Elementwise:
    """Who computes norms and gating. torch's compiler fuses them itself, so others serve layers it does not compile."""
    if able.capability is None and able.compiler and dtype == torch.bfloat16 and not compiled:
        return "c++"
    return "liger" if able.capability is not None and able.liger and able.triton and not compiled else "torch"


def _compile(config: TrainConfig, able: Abilities) -> bool:
    """Whether layers are compiled. `auto`: on CUDA with compilers, unless the base is quantised or divided."""
    if config.compile != "auto":
        return config.compile
    strategy = "ddp" if config.strategy == "auto" else config.strategy
    return able.capability is not None and config.compiles_on_cuda(strategy) and able.compiler and able.triton


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None

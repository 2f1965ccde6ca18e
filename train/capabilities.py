"""The one place that chooses how a pass is computed, by what the device, torch and the configuration allow."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch

from .compilation import has_compiler
from .config import ActivationCheckpointing, TrainConfig

AttentionKernel = Literal["varlen", "sdpa"]


@dataclass(frozen=True)
class Choices:
    """How the passes of a run are computed.

    attention: one kernel for all documents, or one SDPA call for each
    pad_to:    tokens that every pass is padded to; 0: passes hold no padding
    activation_checkpointing: what is left of it to do beside compilation
    """

    attention: AttentionKernel
    compile: bool
    pad_to: int
    activation_checkpointing: ActivationCheckpointing

    def describe(self) -> str:
        """One line for the log."""
        kernel = {"varlen": "variable-length kernel", "sdpa": "SDPA for each document"}[self.attention]
        compiled = f"layers compiled, passes of {self.pad_to} tokens" if self.compile else "layers not compiled"
        return f"attention: {kernel}; {compiled}; recomputation: {self.activation_checkpointing}; AdamW: fused"


def choose(config: TrainConfig, device: torch.device, dtype: torch.dtype) -> Choices:
    """What this run uses on this device."""
    compiled = _compile(config, device)
    recompute = config.activation_checkpointing
    return Choices(
        attention=attention_kernel(device, dtype),
        compile=compiled,
        # A probe for `micro: auto` goes through many sizes: whole rows are all it can be padded to.
        pad_to=config.data.max_length * (1 if config.batch.micro == "auto" else config.batch.micro) if compiled else 0,
        # A compiled layer already recomputes what is cheap in backward and keeps what is dear: that is `selective`.
        activation_checkpointing="off" if compiled and recompute == "selective" else recompute,
    )


@cache
def attention_kernel(device: torch.device, dtype: torch.dtype) -> AttentionKernel:
    """torch's variable-length kernel is FlashAttention's: Ampere or newer, and 16-bit numbers."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return "sdpa"
    return "varlen" if torch.cuda.get_device_capability(device) >= (8, 0) and _has_varlen() else "sdpa"


def _has_varlen() -> bool:
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: F401
    except ImportError:
        return False
    return True


def _compile(config: TrainConfig, device: torch.device) -> bool:
    """`auto`: on CUDA, where a compiler is found; not over a quantised or divided base (never tried together)."""
    if config.compile != "auto":
        return config.compile
    return device.type == "cuda" and config.hinders_compiling() is None and has_compiler()

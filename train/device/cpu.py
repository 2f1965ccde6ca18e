"""The processor: what Linux says about it, and how a process keeps to it. It imports nothing heavy."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path


def cpu_gains_from_bf16() -> bool:
    """Whether this CPU multiplies matrices faster in bf16 than in fp32."""
    return bool(cpu_flags() & {"avx512_bf16", "amx_bf16"})


@cache
def cpu_flags() -> frozenset[str]:
    """The instruction-set flags of the first CPU, by Linux's names; empty if /proc/cpuinfo does not exist."""
    return frozenset(_cpuinfo("flags").split())


@cache
def cpu_name() -> str:
    return _cpuinfo("model name") or "CPU"


def _cpuinfo(field: str) -> str:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return ""
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == field:
            return value.strip()
    return ""


def hide_gpus() -> None:
    """Makes this process compute on the CPU. Ray hides no GPU from a rank that reserves none.

    It must be called before torch looks for a GPU.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

"""The processor: what Linux says of it, and how a process keeps to it. Imports nothing heavy."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path


def cpu_gains_from_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices faster than fp32 ones."""
    return bool(cpu_flags() & {"avx512_bf16", "amx_bf16"})


@cache
def cpu_flags() -> frozenset[str]:
    """Instruction-set flags of the first CPU as Linux names them; empty where /proc/cpuinfo does not exist."""
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
    """Make this process of a rank without a GPU compute on the CPU: Ray hides none from what has reserved none.

    To be called before torch looks for a GPU.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

"""What matrix products reach on this very device, the yardstick for training steps: measured, not from a sheet."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
REPEATS = 3


def matmul_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """The best rate of some square products in this process, with its threads."""
    return max(_rate(size, device, dtype) for size in SIZES[device.type])


def seconds_of(device: torch.device, work: Callable[[], Any]) -> float:
    """The least of some tries, from an idle device to an idle device."""
    return min(_once(device, work) for _ in range(REPEATS))


def _rate(size: int, device: torch.device, dtype: torch.dtype) -> float:
    left = torch.randn(size, size, device=device).to(dtype)
    right, out = torch.randn(size, size, device=device).to(dtype), torch.empty(size, size, device=device, dtype=dtype)
    torch.mm(left, right, out=out)
    return 2 * size**3 / seconds_of(device, lambda: torch.mm(left, right, out=out))


def _once(device: torch.device, work: Callable[[], Any]) -> float:
    wait = (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started

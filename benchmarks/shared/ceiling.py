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


def _rate(size: int, device: torch.device, dtype: torch.dtype) -> float:
    left, right, out = (torch.randn(size, size, device=device).to(dtype) for _ in range(3))
    torch.mm(left, right, out=out)
    return 2 * size**3 / seconds_of(device, lambda: torch.mm(left, right, out=out))


def seconds_of(device: torch.device, work: Callable[[], Any]) -> float:
    """The least of some tries, from an idle device to an idle device."""
    seconds = []
    for _ in range(REPEATS):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

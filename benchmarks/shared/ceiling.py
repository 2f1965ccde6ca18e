"""What matrix products reach on this very device, the yardstick for training steps: measured, not from a sheet."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.benchmark import Timer

SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
REPEATS = 3


def matmul_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """The best rate of some square products in this process, with its threads."""
    rates = []
    for size in SIZES[device.type]:
        left, right, out = (torch.randn(size, size, device=device).to(dtype) for _ in range(3))
        rates.append(2 * size**3 / seconds_of(partial(torch.mm, left, right, out=out)))
    return max(rates)


def seconds_of(work: Callable[[], Any]) -> float:
    """The least of some tries, from an idle device to an idle device."""
    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return min(timer.timeit(1).mean for _ in range(REPEATS))

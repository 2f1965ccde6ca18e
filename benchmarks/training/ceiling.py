"""What matrix products reach on this very device, the yardstick for training steps: measured, not from a sheet."""

from __future__ import annotations

import time

import torch

CPU_SIZES = (1024, 2048)
CUDA_SIZES = (4096, 8192)
REPEATS = 3


def matmul_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """The best rate of some square products in this process, with its threads."""
    sizes = CUDA_SIZES if device.type == "cuda" else CPU_SIZES
    return max(_rate(size, device, dtype) for size in sizes)


def _rate(size: int, device: torch.device, dtype: torch.dtype) -> float:
    left = torch.randn(size, size, device=device).to(dtype)
    right, out = torch.randn(size, size, device=device).to(dtype), torch.empty(size, size, device=device, dtype=dtype)
    torch.mm(left, right, out=out)
    seconds = []
    for _ in range(REPEATS):
        _wait(device)
        started = time.perf_counter()
        torch.mm(left, right, out=out)
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

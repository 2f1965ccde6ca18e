"""Small collectives that every strategy needs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def sum_over_ranks(values: list[float], device: torch.device) -> list[float]:
    """The element-wise sum over all ranks, in fp64. Collective. device: that of the process group"""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    tensor = _sent(torch.tensor(values, dtype=torch.float64), device)
    dist.all_reduce(tensor)
    return [float(v) for v in tensor.tolist()]


def sum_scalar(value: Tensor, device: torch.device) -> float:
    """The sum of a scalar over all ranks, in fp64. Collective. Waits for the device once."""
    total = value.to(device, torch.float64)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(total)
    return float(total)


def most_over_ranks(value: int, device: torch.device) -> int:
    """The largest value of all ranks. Collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    tensor = _sent(torch.tensor(value, dtype=torch.int64), device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. Pinned memory lets the copy start without a wait for the device's earlier work."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def sum_of(scalars: Sequence[Tensor]) -> float:
    """The sum of a device's scalars in fp64, on this rank. It waits for the device once, however many there are."""
    return math.fsum(torch.stack(list(scalars)).tolist()) if scalars else 0.0

"""Small agreements between ranks that every strategy needs."""

from __future__ import annotations

import torch
import torch.distributed as dist


def sum_over_ranks(values: list[float], device: torch.device) -> list[float]:
    """Element-wise sum in fp64. `device`: where the process group communicates. Collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return [float(v) for v in tensor.tolist()]


def most_over_ranks(value: int, device: torch.device) -> int:
    """The largest of all ranks' values. Collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.int64, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)

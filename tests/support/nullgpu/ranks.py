"""Process groups on pretended GPUs: of real processes, or of one that pretends to be a rank among several."""

from __future__ import annotations

import os
from datetime import timedelta
from functools import partial
from pathlib import Path

from support.nullgpu.device import PretendedGpu
from support.rank_pool import RankPool


def real_ranks(size: int) -> RankPool:
    """A process a rank, each with a GPU of its own."""
    return RankPool(size, join_nccl, {**PretendedGpu(count=size).variables(), "NULLGPU_PATIENCE": "60"})


def pretended_rank(world_size: int, gpu: PretendedGpu | None = None) -> RankPool:
    """One process that is rank 0 among `world_size`: it holds its share, and what it gathers or sums is its own."""
    variables = (gpu or PretendedGpu()).variables(alone=True)
    return RankPool(1, partial(join_alone, world_size), variables)


def join_nccl(rank: int, size: int, folder: str) -> None:
    """As a rank of a run has it: its device first, then the group."""
    import torch
    import torch.distributed as dist

    torch.cuda.set_device(rank)
    store = dist.FileStore(str(Path(folder) / "rendezvous"), size)  # type: ignore[attr-defined]
    dist.init_process_group("nccl", store=store, rank=rank, world_size=size, timeout=timedelta(minutes=2))


def join_alone(world_size: int, rank: int, size: int, folder: str) -> None:
    """`size` and `folder` are those of the pool, whose only process this is."""
    import torch
    import torch.distributed as dist

    os.environ["WORLD_SIZE"] = str(world_size)
    torch.cuda.set_device(0)
    dist.init_process_group("nccl", store=dist.HashStore(), rank=rank, world_size=world_size)  # type: ignore[attr-defined]

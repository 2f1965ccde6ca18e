"""Finds the devices of the ranks under `python -m train` and `torchrun`, and settles the strategy for them."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
import torch.distributed as dist

from ..config.schema import TrainConfig
from ..data.pictures.peek import holds_pictures
from ..device.abilities import choose_dtype, current_device
from ..device.memory import usable_limit
from ..model.resolve import read_model_config
from ..planning import shape_of_config
from ..planning.auto_strategy import RankDevices, Settled, is_open, needs_devices, settle_strategy
from ..strategies.collectives import most_over_ranks

log = logging.getLogger("gemfleet.train")


def settle_here(
    config: TrainConfig, model_folder: Path, local_rank: int, ranks_on_node: int
) -> tuple[TrainConfig, Settled | None]:
    """The configuration with only the micro-batch open, and the plan's choice (None if nothing was open). Collective.

    Every rank gets the same result.
    """
    if not needs_devices(config):
        return config, None
    shape = shape_of_config(read_model_config(model_folder), config.model)
    pictures = shape.vision is not None and holds_pictures(config.data)
    settled = settle_strategy(config, shape, rank_devices(config, local_rank, ranks_on_node), pictures)
    if is_open(config) and (not dist.is_initialized() or dist.get_rank() == 0):
        log.info("%s", settled.sentence)
    return settled.config, settled


def rank_devices(config: TrainConfig, local_rank: int, ranks_on_node: int) -> RankDevices:
    """The devices that every rank has at least. Collective."""
    facts = current_device(local_rank)
    device = facts.device
    limit = usable_limit(device, config.batch.memory_limit_bytes, ranks_on_node)
    fp32 = choose_dtype(config.precision, facts) is torch.float32
    return RankDevices.of(
        dist.get_world_size() if dist.is_initialized() else 1,
        -most_over_ranks(-limit, device),
        "cuda" if device.type == "cuda" else "cpu",
        "fp32" if most_over_ranks(int(fp32), device) else "bf16",
        facts.name if device.type == "cuda" else "",
    )

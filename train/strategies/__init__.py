"""Ways of sharing the work between ranks, all behind `base.Strategy`."""

from __future__ import annotations

from ..config import TrainConfig
from .base import Strategy
from .ddp import DdpStrategy

STRATEGIES = {"ddp": DdpStrategy}


def build_strategy(config: TrainConfig) -> Strategy:
    """The strategy a run asks for, not yet set up. The process group, if any, exists already."""
    return STRATEGIES[config.strategy](config.optim)

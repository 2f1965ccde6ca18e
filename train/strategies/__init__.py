"""The ways in which ranks share the work. Each fills the protocol `base.Strategy`."""

from __future__ import annotations

from collections.abc import Callable

from ..config.deepspeed_json import engine_json
from ..config.schema import TrainConfig
from .base import Strategy
from .ddp import DdpStrategy


def build_strategy(config: TrainConfig) -> Strategy:
    """The strategy that a run asks for, before its `setup`. The process group exists, and `auto` is settled."""
    return STRATEGIES[config.strategy](config)


def _ddp(config: TrainConfig) -> Strategy:
    return DdpStrategy(config.optim, config.quantization)


def _fsdp2(config: TrainConfig) -> Strategy:
    from .fsdp2 import Fsdp2Strategy

    return Fsdp2Strategy(config.optim, config.fsdp2, config.quantization)


def _deepspeed(config: TrainConfig) -> Strategy:
    from .deepspeed import DeepSpeedStrategy

    return DeepSpeedStrategy(config.optim, config.deepspeed.stage, engine_json(config.deepspeed_settings()))


STRATEGIES: dict[str, Callable[[TrainConfig], Strategy]] = {"ddp": _ddp, "fsdp2": _fsdp2, "deepspeed": _deepspeed}

"""Trained parameters that stay whole on every rank beside divided ones: those of a projector, outside the decoder.

They are trained as under `ddp`. Only the gradients' norm is one of all parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config.sections.recipe import OptimConfig
from ..model.gemma import TrainableModel
from .base import StateDict
from .ddp import DdpStrategy


class WholeParameters:
    """Those of a model that its decoder does not have, which are often none. Every method is as in `Strategy`."""

    def __init__(self, model: TrainableModel, optim: OptimConfig) -> None:
        divided = {id(parameter) for parameter in model.text_model.parameters()}
        self.parameters: dict[str, nn.Parameter] = {
            name: parameter for name, parameter in model.adapter_parameters().items() if id(parameter) not in divided
        }
        self._held = DdpStrategy(optim) if self.parameters else None
        if self._held is not None:
            self._held.hold(self.parameters)

    @property
    def gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]

    def reduce_gradients(self) -> None:
        if self._held is not None:
            self._held.reduce_gradients()

    def squares(self) -> float:
        """The sum of all gradients' squares, the same on every rank."""
        return float(sum((gradient.double().square().sum() for gradient in self.gradients), torch.zeros(())))

    def scale(self, factor: float) -> None:
        if self.gradients:
            torch._foreach_mul_(self.gradients, factor)

    def step(self, learning_rate: float) -> None:
        if self._held is not None:
            self._held.step(learning_rate)

    def gather_adapter(self) -> StateDict:
        return {} if self._held is None else self._held.gather_adapter()

    def gather_optimizer(self) -> StateDict:
        return {} if self._held is None else self._held.gather_optimizer()

    def restore(self, adapter: StateDict, optimizer: StateDict) -> None:
        if self._held is not None:
            self._held.restore(adapter, optimizer)

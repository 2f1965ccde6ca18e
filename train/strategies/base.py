"""The contract between the loop and a way of sharing the work: one verb a phase, nothing else crosses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..model.gemma import TrainableModel

StateDict = dict[str, Tensor]


def by_parameter(optimizer: StateDict) -> dict[str, StateDict]:
    """A gathered optimizer state, keys `<parameter name>.<field>`, as the fields of each parameter."""
    states: dict[str, StateDict] = {}
    for key, value in optimizer.items():
        name, _, field = key.rpartition(".")
        states.setdefault(name, {})[field] = value
    return states


class Strategy(Protocol):
    """How the ranks of a run hold the model and agree on its gradient.

    Order of calls: `load_base`, `setup`; then in a step `passes`, for each pass forward and `backward`,
    `reduce_gradients`, `clip`, `step`. An evaluation is `passes` and forwards.

    Gradients are summed over ranks, never averaged: the loss is divided by the whole step's supervised tokens already.
    """

    name: str
    world_size: int

    def load_base(self, folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
        """The frozen base model of a checked folder, as far as this rank needs it before `setup`. Collective."""
        ...

    def setup(self, model: TrainableModel) -> TrainableModel:
        """Take the model over; afterwards all ranks hold equal adapters. Called once."""
        ...

    def passes(self, own: int) -> int:
        """How many passes this rank runs in the coming step or evaluation, given how many its own rows make.

        Ranks may have different numbers of rows, or none. Where parameters are gathered during a pass, all ranks have
        to run equally many: the caller makes up the difference by passes over `EMPTY_PASS`, whose loss is zero.
        Collective.
        """
        ...

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of this rank's share of the step's loss."""
        ...

    def reduce_gradients(self) -> None:
        """Sum the accumulated gradients over all ranks. Collective."""
        ...

    def clip(self, max_norm: float) -> float:
        """Global gradient norm before clipping; scales the gradients down to `max_norm` unless it is 0. Collective."""
        ...

    def step(self, learning_rate: float) -> None:
        """Update the adapters and clear their gradients."""
        ...

    def sum_over_ranks(self, values: list[float]) -> list[float]:
        """Element-wise sum in fp64. Collective."""
        ...

    def gather_adapter(self) -> StateDict:
        """Full adapter tensors on the CPU, by the names of `TrainableModel.adapter_parameters`. Collective."""
        ...

    def gather_optimizer(self) -> StateDict:
        """Full optimizer state on the CPU, keys `<parameter name>.<field>`. Collective."""
        ...

    def restore(self, adapter: StateDict, optimizer: StateDict) -> None:
        """Load what the gather methods returned, written by any strategy on any number of ranks. Collective."""
        ...

"""The contract between the loop and a way of sharing the work. It has one verb for each phase, and nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..model.gemma import TrainableModel

StateDict = dict[str, Tensor]


def digest_of(tensors: StateDict) -> bytes:
    """A digest of every bit of the tensors, which lie on the CPU."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors.values():
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.digest()


def by_parameter(optimizer: StateDict) -> dict[str, StateDict]:
    """The fields of each parameter, from a gathered optimizer state with the keys `<parameter name>.<field>`."""
    states: dict[str, StateDict] = {}
    for key, value in optimizer.items():
        name, _, field = key.rpartition(".")
        states.setdefault(name, {})[field] = value
    return states


class Strategy(Protocol):
    """How the ranks of a run hold the model and sum its gradient.

    Order of calls: `load_base`, `setup`; in each step `passes`, then a forward and `backward` for each pass, then
    `reduce_gradients`, `clip`, `step`. An evaluation calls `passes` and runs forwards.

    Gradients are summed over ranks, never averaged: the loss is already divided by the whole step's supervised tokens.
    """

    name: str
    world_size: int

    def load_base(self, folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
        """The frozen base model of a checked folder, or as much of it as this rank needs before `setup`. Collective."""
        ...

    def setup(self, model: TrainableModel) -> TrainableModel:
        """Takes the model over. Then all ranks hold equal adapters. Called once. Collective."""
        ...

    def passes(self, own: int) -> int:
        """The number of passes that this rank runs in the next step or evaluation. Its rows make `own`. Collective.

        Ranks may have different numbers of rows, or none. If a strategy gathers parameters during a pass, all ranks
        must run equally many. The caller then adds passes over `EMPTY_PASS`, whose loss is zero.
        """
        ...

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of this pass's share of the step's loss (a scalar)."""
        ...

    def reduce_gradients(self) -> None:
        """Sums the accumulated gradients over all ranks. Collective."""
        ...

    def clip(self, max_norm: float) -> float:
        """Scales the gradients down to the global norm `max_norm`, unless that is 0. Collective.

        Returns the norm before the scaling.
        """
        ...

    def step(self, learning_rate: float) -> None:
        """Updates the adapters and clears their gradients."""
        ...

    def sum_over_ranks(self, values: list[float]) -> list[float]:
        """The element-wise sum over all ranks, in fp64. Collective."""
        ...

    def gather_adapter(self) -> StateDict:
        """The whole adapter tensors on the CPU, by the names of `TrainableModel.adapter_parameters`. Collective."""
        ...

    def gather_optimizer(self) -> StateDict:
        """The whole optimizer state on the CPU, with the keys `<parameter name>.<field>`. Collective."""
        ...

    def restore(self, adapter: StateDict, optimizer: StateDict) -> None:
        """Loads what the gather methods of any strategy returned, on any number of ranks. Collective."""
        ...

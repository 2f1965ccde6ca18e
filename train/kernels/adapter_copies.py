"""Copies all adapters into the dtype of the computation, anew for each pass, in a few launches.

A model has hundreds of small adapter matrices. Casting each in its layer takes more launches than all else in a
compiled pass. Here they lie end to end, A matrices first, and are cast together; gradients return the same way.
This needs adapters that are whole on this rank's device. If layers are gathered one by one, each casts its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from .lora import Adapters, is_fused
from .shared_inputs import SharedInput


class AdapterCopies:
    """The copies that a model's fused projections read in place of their fp32 parameters."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        """model: `fuse_lora_projections` and `share_inputs` have changed its layers; it may have no adapters."""
        readers: list[tuple[Any, list[Any]]] = [(module, _layers_of(module)) for module in model.modules()]
        shared = {id(layer) for module, layers in readers for layer in layers if layer is not module}
        self._readers = [(module, layers) for module, layers in readers if layers and id(module) not in shared]
        self._layers = [layer for _, layers in self._readers for layer in layers]
        self._dtype = dtype

    def refresh(self) -> None:
        """Casts the parameters' current values, for one pass and its backward. Differentiable."""
        if not self._layers:
            return
        if any(layer.disable_adapters or layer.merged for layer in self._layers[:1]):
            self._give([None] * len(self._readers))
            return
        downs, ups = (
            [getattr(layer, side)["default"].weight for layer in self._layers] for side in ("lora_A", "lora_B")
        )
        stacked = [len(layers) for _, layers in self._readers]
        cast = _CastTogether.apply(self._dtype, self._layers[0].scaling["default"], stacked, *downs, *ups)
        of_ups = iter(cast[len(stacked) :])
        self._give(
            [
                Adapters(down, tuple(next(of_ups) for _ in range(count)))
                for down, count in zip(cast, stacked, strict=False)
            ]
        )

    def _give(self, copies: Sequence[Adapters | None]) -> None:
        for (module, _), adapters in zip(self._readers, copies, strict=True):
            module.copies = adapters


def _layers_of(module: Any) -> list[Any]:
    """The fused projections that `module` computes together: those of its shared input, or itself."""
    if isinstance(module, SharedInput):
        return module.projections()
    return [module] if is_fused(module) else []


class _CastTogether(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, dtype: torch.dtype, scaling: float, stacked: Sequence[int], *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        """Returns the stacks of A, then every B times the scaling.

        parameters: all A [r, in], then all B [out, r]; stacked: the number of A matrices in each stack
        """
        downs = parameters[: len(parameters) // 2]
        flat = _flatten_dense_tensors(parameters)
        begin = sum(down.numel() for down in downs)
        flat[begin:].mul_(scaling)
        shapes = [*_stacked_shapes(downs, stacked), *[up.shape for up in parameters[len(downs) :]]]
        pieces = flat.to(dtype).split([math.prod(shape) for shape in shapes])
        ctx.scaling, ctx.begin, ctx.parameters = scaling, begin, parameters
        return tuple(piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        flat = _flatten_dense_tensors(upstream).to(ctx.parameters[0].dtype)
        flat[ctx.begin :].mul_(ctx.scaling)
        return None, None, None, *_unflatten_dense_tensors(flat, ctx.parameters)


def _stacked_shapes(downs: Sequence[Tensor], stacked: Sequence[int]) -> list[tuple[int, int]]:
    shapes, first = [], 0
    for count in stacked:
        group = downs[first : first + count]
        shapes.append((sum(down.shape[0] for down in group), group[0].shape[1]))
        first += count
    return shapes

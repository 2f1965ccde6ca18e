"""A decoder layer whose quantised weights lie end to end in one parameter of bytes, so that ranks can divide it.

torch's `fully_shard` divides, gathers and frees that parameter like any other: it neither casts nor differentiates
bytes. The layer's projections read fixed views of the gathered bytes: codes and scales, as `quantization.py` makes
weights dense from. Freeing empties the storage below the views, and gathering fills it again.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .nf4 import BLOCK_WEIGHTS, NESTED_BLOCKS
from .quantization import Dequantise, PackedLinear

PARAMETER = "packed_base"
ALIGNMENT = 128  # bytes: where each tensor begins, as kernels read many bytes at once


@dataclass(frozen=True)
class Field:
    """A tensor within the bytes of a layer. start: its first byte"""

    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def end(self) -> int:
        return self.start + math.prod(self.shape) * self.dtype.itemsize

    def view(self, packed: Tensor) -> Tensor:
        """The tensor, in the bytes of the whole layer."""
        return packed[self.start : self.end].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class PackedWeight:
    """One quantised weight [rows, columns]. path: of its linear module within the layer

    fields: `codes`, then scales: of 8 bits `largest` for each row; of 4 bits what `nf4.compressed` returns
    """

    path: str
    bits: int
    rows: int
    columns: int
    fields: dict[str, Field]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's codes."""
        return self.columns * self.bits // 8

    @property
    def scales(self) -> int:
        """How many magnitudes scale this weight: one for each block of 4 bits, one for each row of 8."""
        return self.rows * self.columns // BLOCK_WEIGHTS if self.bits == 4 else self.rows


@dataclass(frozen=True)
class PackedLayer:
    """The weights of one layer, and the bytes that hold them all, divisible among the ranks."""

    weights: tuple[PackedWeight, ...]
    nbytes: int


def pack_layer(layer: nn.Module, eight_bits: Collection[str], ranks: int) -> PackedLayer:
    """Replaces the weights of the layer's frozen projections by one parameter of bytes, on the meta device.

    eight_bits: the projections that have 8 bits; all others have 4
    """
    weights, end = [], 0
    for path, linear in _projections(layer):
        bits = 8 if path.removesuffix(".base_layer").rpartition(".")[2] in eight_bits else 4
        rows, columns = linear.weight.shape
        weight, end = _laid_out(path, bits, rows, columns, end)
        weights.append(weight)
        del linear.weight
        linear.__class__ = PackedLinear
    share = -(-end // (ranks * ALIGNMENT)) * ALIGNMENT
    packed = PackedLayer(tuple(weights), share * ranks)
    whole = torch.empty(packed.nbytes, dtype=torch.uint8, device="meta")
    layer.register_parameter(PARAMETER, nn.Parameter(whole, requires_grad=False))
    layer.register_forward_pre_hook(_ShowWeights(packed))
    return packed


def _projections(layer: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for path, module in list(layer.named_modules()):
        if type(module) is nn.Linear and not module.weight.requires_grad:
            yield path, module


def _laid_out(path: str, bits: int, rows: int, columns: int, start: int) -> tuple[PackedWeight, int]:
    """The weight's place from byte `start` on, and the byte after it."""
    wanted: dict[str, tuple[tuple[int, ...], torch.dtype]]
    if bits == 8:
        wanted = {"codes": ((rows, columns), torch.int8), "largest": ((rows,), torch.float32)}
    else:
        if columns % BLOCK_WEIGHTS:
            raise UserError(
                f"train.quantization is int4 with train.strategy fsdp2, which divides weights by rows of whole blocks, "
                f"but {path.removesuffix('.base_layer')} has {columns} columns, no multiple of {BLOCK_WEIGHTS}; "
                "use train.strategy ddp"
            )
        blocks = rows * columns // BLOCK_WEIGHTS
        wanted = {
            "codes": ((rows * columns // 2, 1), torch.uint8),
            "absmax": ((blocks,), torch.uint8),
            "nested": ((-(-blocks // NESTED_BLOCKS),), torch.float32),
            "offset": ((), torch.float32),
        }
    fields = {}
    for name, (shape, dtype) in wanted.items():
        fields[name] = Field(start, shape, dtype)
        start = -(-fields[name].end // ALIGNMENT) * ALIGNMENT
    return PackedWeight(path, bits, rows, columns, fields), start


class _ShowWeights:
    """A hook that gives the projections their views when the layer's bytes are gathered for the first time."""

    def __init__(self, packed: PackedLayer) -> None:
        self._packed = packed
        self._shown: Tensor | None = None

    def __call__(self, layer: nn.Module, inputs: Any) -> None:
        whole = getattr(layer, PARAMETER)
        if whole is self._shown:  # gathering fills the same storage each time
            return
        self._shown = whole
        for weight in self._packed.weights:
            linear: Any = layer.get_submodule(weight.path)
            views = {name: field.view(whole.detach()) for name, field in weight.fields.items()}
            linear.weight = views.pop("codes")
            linear.dequantise = Dequantise(list(views.values()), (weight.rows, weight.columns))

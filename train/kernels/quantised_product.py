"""A product with a quantised weight as one operator, for compiled layers.

The compiler sees that forward and backward make the same weight dense. It would do that once and keep the dense weight
of every layer from forward to backward, several times the memory of the whole base. It does not look into an operator,
where the weight is dense for one product, as in layers that are not compiled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .nf4 import dense_from_4_bits

BLOCK_VALUES = 1 << 18


def dense_weight(codes: Tensor, scales: list[Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The weight [out, in]. scales: as `quantised_product` takes them"""
    if len(scales) > 1:
        return dense_from_4_bits(codes, scales, shape, dtype)
    scale = (scales[0].float() / 127).unsqueeze(1)
    dense = torch.empty(shape, dtype=dtype, device=codes.device)
    # A CPU makes fp32 copies of all that it multiplies; those of a whole weight leave holes in the heap.
    many = max(1, BLOCK_VALUES // shape[1]) if codes.device.type == "cpu" else shape[0]
    for rows in (slice(start, start + many) for start in range(0, shape[0], many)):
        torch.mul(codes[rows], scale[rows], out=dense[rows])
    return dense


def quantised_product(x: Tensor, codes: Tensor, scales: list[Tensor], rows: int, columns: int, back: bool) -> Tensor:
    """x W^T, or x W if `back`, for a weight W [rows, columns]. x: [..., columns], or [..., rows] if `back`.

    scales: of 8 bits the magnitude that 127 stands for in each row, [rows]; of 4 bits `absmax`, `nested`, `offset`
    """
    product: Tensor = torch.ops.gemfleet.quantised_product(x, codes, scales, rows, columns, back)
    return product


def _multiply(x: Tensor, codes: Tensor, scales: list[Tensor], rows: int, columns: int, back: bool) -> Tensor:
    dense = dense_weight(codes, scales, (rows, columns), x.dtype)
    return x @ (dense if back else dense.T)


def _shape_of_product(x: Tensor, codes: Tensor, scales: list[Tensor], rows: int, columns: int, back: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], columns if back else rows)


_LIBRARY = torch.library.Library("gemfleet", "FRAGMENT")
_LIBRARY.define(
    "quantised_product(Tensor x, Tensor codes, Tensor[] scales, int rows, int columns, bool back) -> Tensor"
)
_LIBRARY.impl("quantised_product", _multiply, "CompositeExplicitAutograd")
_LIBRARY.impl("quantised_product", _shape_of_product, "Meta")

"""Each rank quantises its own share of a layer's bytes from the files, to the codes that one process would make.

A share is a range of bytes, which begins and ends anywhere. So a rank quantises the rows that its range of codes
touches, in pieces. Scales may lie in another rank's share than their rows do, and int4's are compressed by their mean
over the whole weight. So all ranks first learn all scales of a layer: one value for 32 weights, or for a row.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ..kernels.nf4 import WEIGHTS_AT_ONCE, codes_and_largest, compressed
from ..kernels.packed_layers import Field, PackedLayer, PackedWeight
from ..kernels.quantization import in_8_bits, in_8_bits_by_library
from ..model.lean import WeightFiles


class ShareFiller:
    """Fills the shares of one rank, layer by layer.

    dtype: of the computation, in which weights are quantised; device: that does it; by_library: for a base in int8
    """

    def __init__(self, files: WeightFiles, dtype: torch.dtype, device: torch.device, by_library: bool) -> None:
        self._files, self._dtype, self._device = files, dtype, device
        self._in_8_bits = in_8_bits_by_library if by_library else in_8_bits

    def fill(self, share: Tensor, packed: PackedLayer, prefix: str) -> None:
        """Writes this rank's bytes. Collective. share: uint8, whole / ranks; prefix: the layer's name, with a dot"""
        start = dist.get_rank() * share.numel()
        largest = torch.zeros(sum(weight.scales for weight in packed.weights), device=self._device)
        parts = largest.split([weight.scales for weight in packed.weights])
        for weight, part in zip(packed.weights, parts, strict=True):
            self._fill_codes(share, start, weight, f"{prefix}{weight.path.removesuffix('.base_layer')}.weight", part)
        if dist.get_world_size() > 1:
            dist.all_reduce(largest, dist.ReduceOp.MAX)  # each is zero, or the same on every rank that made it
        for weight, part in zip(packed.weights, parts, strict=True):
            scales = compressed(part) if weight.bits == 4 else {"largest": part}
            for name, values in scales.items():
                _write(share, start, weight.fields[name], values)

    def _fill_codes(self, share: Tensor, start: int, weight: PackedWeight, name: str, largest: Tensor) -> None:
        """Writes the codes in the share that begins at byte `start`, and the scales of their rows into `largest`."""
        field, size = weight.fields["codes"], weight.row_bytes
        first = (max(start, field.start) - field.start) // size
        end = -(-(min(start + share.numel(), field.end) - field.start) // size)
        scales_of_row = weight.scales // weight.rows
        at_once = max(1, WEIGHTS_AT_ONCE // weight.columns)
        for row in range(first, end, at_once):
            until = min(row + at_once, end)
            rows = self._files.rows(name, row, until).to(self._device, self._dtype)
            codes, scales = codes_and_largest(rows) if weight.bits == 4 else self._in_8_bits(rows)
            piece = Field(field.start + row * size, tuple(codes.shape), codes.dtype)
            _write(share, start, piece, codes)
            largest[row * scales_of_row : until * scales_of_row] = scales


def _write(share: Tensor, start: int, field: Field, values: Tensor) -> None:
    """Copies the part of `values` whose bytes lie in the share that begins at byte `start`."""
    content = values.contiguous().view(-1).view(torch.uint8)
    first, end = max(start, field.start), min(start + share.numel(), field.end)
    if first < end:
        share[first - start : end - start].copy_(content[first - field.start : end - field.start])

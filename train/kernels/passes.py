"""Makes a pass's inputs of packed rows on the host, so that nothing waits for the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..interfaces import PackedRows
from .attention.packed import Packing
from .capabilities import AttentionKernel


@dataclass(frozen=True)
class PassInputs:
    """tokens, positions: int64 [T]; predicting: int64 [N], positions whose states are scored; targets: int64 [N]"""

    tokens: Tensor
    positions: Tensor
    predicting: Tensor
    targets: Tensor
    packing: Packing


def pass_inputs(rows: PackedRows, device: torch.device, kernel: AttentionKernel) -> PassInputs:
    """The inputs of one pass. The host counts them out: `nonzero` on a GPU would wait for all its earlier work."""
    ids, supervised = rows.tokens.astype(np.int64), np.flatnonzero(rows.supervised)
    ends = np.concatenate([[0], np.cumsum(rows.document_lengths)]).astype(np.int32)
    # The state at position t predicts the token at t + 1. A document's first token is never supervised.
    arrays = (ids, positions_in(rows.document_lengths), supervised - 1, ids[supervised], ends)
    tokens, positions, predicting, targets, cu_seqlens = copy_to(device, arrays)
    packing = Packing(tuple(int(n) for n in rows.document_lengths), cu_seqlens, kernel)
    return PassInputs(tokens, positions, predicting, targets, packing)


def positions_in(lengths: NDArray[np.int32]) -> NDArray[np.int64]:
    """0, 1, … within each document, end to end. int64 [T]"""
    starts = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum()), dtype=np.int64) - np.repeat(starts, lengths)


def copy_to(device: torch.device, arrays: Sequence[NDArray[np.int64] | NDArray[np.int32]]) -> list[Tensor]:
    """The arrays on a device. On CUDA they go through pinned memory on a stream of their own, beside a running pass."""
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    if device.type != "cuda":
        return [tensor.to(device) for tensor in tensors]
    computing, copying = torch.cuda.current_stream(device), _copy_stream(device)
    with torch.cuda.stream(copying):
        copies = [tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors]
    computing.wait_stream(copying)
    for copy in copies:
        copy.record_stream(computing)
    return copies


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)

"""Makes a pass's inputs of packed rows on the host, so that nothing waits for the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..context.group import SharedPass
from ..interfaces import PackedRows
from .attention.packed import Packing
from .capabilities import AttentionKernel


@dataclass(frozen=True)
class PassInputs:
    """tokens, positions: int64 [T]; predicting: int64 [N], positions whose states are scored; targets: int64 [N]

    Under context parallelism, T counts the tokens of this rank's share.
    """

    tokens: Tensor
    positions: Tensor
    predicting: Tensor
    targets: Tensor
    packing: Packing


def pass_inputs(
    rows: PackedRows, device: torch.device, kernel: AttentionKernel, shared: SharedPass | None = None
) -> PassInputs:
    """The inputs of one pass. The host counts them out: `nonzero` on a GPU would wait for all its earlier work.

    shared: how the ranks of a context group divide the pass; None: this rank computes all of it
    """
    ids, supervised = rows.tokens.astype(np.int64), np.flatnonzero(rows.supervised)
    begin, end, lengths = 0, len(ids), tuple(int(n) for n in rows.document_lengths)
    if shared is not None:
        begin, end, lengths = shared.own.begin, shared.own.end, shared.own.lengths
    # The state at position t predicts the token at t + 1, which may be the first of the next share. A document's first
    # token is never supervised.
    supervised = supervised[(supervised > begin) & (supervised <= end)]
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    own = positions_in(rows.document_lengths)[begin:end]
    arrays = (ids[begin:end], own, supervised - 1 - begin, ids[supervised], ends)
    tokens, positions, predicting, targets, cu_seqlens = copy_to(device, arrays)
    return PassInputs(tokens, positions, predicting, targets, Packing(lengths, cu_seqlens, kernel, shared))


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

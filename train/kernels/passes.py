"""Makes a pass's inputs of packed rows on the host, so that nothing waits for the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..context.group import SharedPass
from ..interfaces import Ints, PackedRows
from .attention.packed import Packing
from .attention.reach import reach_of
from .capabilities import AttentionKernel


@dataclass(frozen=True)
class PassInputs:
    """tokens, positions: int64 [T]; predicting: int64 [N], positions whose states are scored; targets: int64 [N]

    Under context parallelism, T counts the tokens of this rank's share.
    pictures: int64 [P], on the host; soft: int64 [P x soft tokens], the places of their soft tokens; None: no pictures
    """

    tokens: Tensor
    positions: Tensor
    predicting: Tensor
    targets: Tensor
    packing: Packing
    pictures: Ints
    soft: Tensor | None


def pass_inputs(
    rows: PackedRows,
    device: torch.device,
    kernel: AttentionKernel,
    shared: SharedPass | None = None,
    soft_tokens: int = 0,
) -> PassInputs:
    """The inputs of one pass. The host counts them out: `nonzero` on a GPU would wait for all its earlier work.

    shared: how the ranks of a context group divide the pass; None: this rank computes all of it
    soft_tokens: of one picture
    """
    ids, supervised = rows.tokens.astype(np.int64), np.flatnonzero(rows.supervised)
    begin, end, lengths = 0, len(ids), tuple(int(n) for n in rows.document_lengths)
    if shared is not None:
        begin, end, lengths = shared.own.begin, shared.own.end, shared.own.lengths
    # The state at position t predicts the token at t + 1, which may be the first of the next share. A document's first
    # token is never supervised.
    supervised = supervised[(supervised > begin) & (supervised <= end)]
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    soft = (rows.picture_starts[:, None] + np.arange(soft_tokens)).reshape(-1)
    targets = ids[supervised]
    ids[soft] = 0  # pictures take their places; the embedding may lack their id
    own = positions_in(rows.document_lengths)[begin:end]
    arrays: list[NDArray[np.signedinteger[Any]]] = [ids[begin:end], own, supervised - 1 - begin, targets, ends]
    if len(soft):
        arrays += [soft, reach_of(np.isin(np.arange(len(ids)), soft), rows.document_lengths)]
    tokens, positions, predicting, wanted, cu_seqlens, *seen = copy_to(device, arrays)
    places, reach = seen or (None, None)
    packing = Packing(lengths, cu_seqlens, kernel, shared, reach)
    return PassInputs(tokens, positions, predicting, wanted, packing, rows.pictures, places)


def positions_in(lengths: NDArray[np.int32]) -> NDArray[np.int64]:
    """0, 1, … within each document, end to end. int64 [T]"""
    starts = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum()), dtype=np.int64) - np.repeat(starts, lengths)


def copy_to(device: torch.device, arrays: Sequence[NDArray[np.signedinteger[Any]]]) -> list[Tensor]:
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

"""Who sees whom in packed documents that hold pictures, as transformers' masks for Gemma 3 say it.

A token sees itself and earlier tokens of its document, in a sliding layer those inside the window. The soft tokens of a
picture also see the later ones of the same picture, in sliding layers too, however large the picture is. So one number
a token says all: its reach, one past the last token that it sees.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


def reach_of(soft: NDArray[np.bool_], lengths: NDArray[np.int32]) -> NDArray[np.int64]:
    """The reach of each token of a pass. int64 [T]

    soft: bool [T], True for pictures' tokens; each run of them within a document is a picture
    lengths: int32 [D], tokens of each document
    """
    tokens = len(soft)
    ends = np.ones(tokens, np.bool_)  # whether the next token belongs to no picture, or to another document's
    ends[:-1] = ~soft[1:]
    ends[np.cumsum(lengths) - 1] = True
    own = np.arange(1, tokens + 1, dtype=np.int64)
    ends_at = np.where(ends, own, tokens)
    of_picture = np.minimum.accumulate(ends_at[::-1])[::-1]
    return np.where(soft, of_picture, own)


def sees(query: Tensor, key: Tensor, reach: Tensor, window: int | None) -> Tensor:
    """Whether queries see keys of their document, by positions in the pass, which broadcast. reach: the queries'"""
    seen = key < reach
    return seen if window is None else seen & (key > query - window)


def documents_by_sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: tuple[int, ...],
    reach: Tensor,
    scaling: float,
    window: int | None,
) -> Tensor:
    """SDPA with a mask for each document. Returns as query.

    query: [1, heads, T, d]; key, value: [1, kv heads, T, d]
    """
    outputs, start = [], 0
    for length in lengths:
        places = torch.arange(start, start + length, device=query.device)
        own = slice(start, start + length)
        outputs.append(
            functional.scaled_dot_product_attention(
                query[:, :, own],
                key[:, :, own],
                value[:, :, own],
                attn_mask=sees(places[:, None], places, reach[own, None], window),
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
        start += length
    return torch.cat(outputs, dim=2)

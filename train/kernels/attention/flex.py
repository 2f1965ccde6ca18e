"""Packed attention by torch's flex attention, for GPUs whose torch has no variable-length kernel, and for pictures.

The mask is a rule: same document, not later (or of the same picture), inside the window. From it torch derives the
blocks of 128 by 128 scores that it can skip. Each pass makes one mask for each kind of layer. On a GPU the kernel is
compiled. On a CPU, which only tests use, it is interpreted and writes out all scores.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .reach import sees

BLOCK = 128


class DocumentMasks:
    """The block masks of one pass, by window. The first layer that asks for a mask has it made.

    document_of: int [T], the number of each token's document; reach: see `Packing`
    """

    def __init__(self, document_of: Tensor, reach: Tensor | None = None) -> None:
        self._document_of = document_of
        self._reach = torch.arange(1, len(document_of) + 1, device=document_of.device) if reach is None else reach
        self._masks: dict[int | None, Any] = {}

    def of(self, window: int | None, earlier: int = 0) -> Any:
        """earlier: keys of the first document that come before the first query"""
        if window not in self._masks:
            self._masks[window] = self._make(window, earlier)
        return self._masks[window]

    def _make(self, window: int | None, earlier: int) -> Any:
        from torch.nn.attention.flex_attention import create_block_mask

        document, queries, reach = functional.pad(self._document_of, (earlier, 0)), len(self._document_of), self._reach

        def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            place = query + earlier
            return (document[place] == document[key]) & sees(place, key, reach[query] + earlier, window)

        sizes = queries, earlier + queries
        return create_block_mask(visible, None, None, *sizes, device=str(document.device), BLOCK_SIZE=BLOCK)


def flex(query: Tensor, key: Tensor, value: Tensor, masks: DocumentMasks, scaling: float, window: int | None) -> Tensor:
    """query: [1, query heads, T, head_dim]; key, value: [1, kv heads, T, head_dim]; returns as query.

    Keys may be more than queries: those of the first document that come before its first query.
    """
    output: Tensor = _kernel(query.is_cuda)(
        query,
        key,
        value,
        block_mask=masks.of(window, key.shape[2] - query.shape[2]),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output


@cache
def _kernel(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # Passes differ in length: the second pass makes the length a variable, and later passes compile nothing.
    return torch.compile(flex_attention) if compiled else flex_attention

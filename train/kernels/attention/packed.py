"""Attention over packed documents that do not see each other, registered with transformers' `AttentionInterface`.

A pass holds its documents end to end in one row, `[1, heads, tokens, head_dim]`. Their lengths pass through the model's
forward unchanged, as the keyword argument `packing`. No mask is built for a whole row.

`capabilities.py` chooses the kernel. `torch.nn.attention.varlen`, flex attention, and matrix products over blocks of
queries (bf16 on a CPU) take all documents in one call. SDPA takes one document a call; a document longer than a layer's
sliding window is cut into blocks of queries, which read only the keys that their window reaches.

Under context parallelism a rank has a share of the pass. Before attention it gets the keys and values that its queries
see in earlier shares (`train/context/`). Then the first document has more keys than queries, and both end together.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...context.group import SharedPass
from ...errors import UserError
from ..capabilities import AttentionKernel, attention_kernel
from .blocks import block_attention
from .flex import DocumentMasks, flex
from .reach import documents_by_sdpa

ATTENTION_NAME = "gemfleet_packed"


@dataclass(eq=False)
class Packing:
    """Where documents begin and end in a pass. Nobody changes it.

    It is not a frozen dataclass: torch's compiler guards every field of one, so it would compile anew for each number
    of documents.

    lengths:    tokens of each document, in order
    cu_seqlens: int32 [documents + 1] on the model's device, the running sum of `lengths` from 0
    kernel:     the kernel that computes the attention
    shared:     the division of the pass in a context group; lengths and cu_seqlens are then those of this rank's share
    reach:      int64 [T] on the model's device, one past the last token that each one sees; None if the pass holds no
                pictures, so that none sees later tokens. No ranks share a pass that has one
    """

    lengths: tuple[int, ...]
    cu_seqlens: Tensor
    kernel: AttentionKernel = "sdpa"
    shared: SharedPass | None = None
    reach: Tensor | None = None

    def __post_init__(self) -> None:
        # Code that is compiled for 1 serves only 1, so it is at least 2. It is a bound that no document need reach.
        self.longest = max(2, *self.lengths)
        # Found out here, because torch's compiler cannot inspect signatures.
        self.tells_groups = self.kernel == "varlen" and "enable_gqa" in _varlen_keywords()
        self._masks_of_first: dict[int, Tensor] = {}

    def ends_of_keys(self, earlier: int) -> Tensor:
        """`cu_seqlens` of the keys. earlier: keys of the first document that come before its first query"""
        return torch.cat([self.cu_seqlens[:1], self.cu_seqlens[1:] + earlier]) if earlier else self.cu_seqlens

    def mask_of_first(self, queries: Tensor, earlier: int) -> Tensor:
        """[queries, keys] to add to the scores of the first document, where no window cuts; one for all layers."""
        if earlier not in self._masks_of_first:
            hidden = queries.new_full((queries.shape[2], earlier + queries.shape[2]), -torch.inf)
            self._masks_of_first[earlier] = hidden.triu_(earlier + 1)
        return self._masks_of_first[earlier]

    @cached_property
    def masks(self) -> DocumentMasks:
        """The masks for flex attention."""
        device = self.cu_seqlens.device
        numbers = torch.arange(len(self.lengths), device=device)
        return DocumentMasks(
            numbers.repeat_interleave(self.cu_seqlens.diff(), output_size=sum(self.lengths)), self.reach
        )


@cache
def register_packed_attention() -> str:
    """Makes `ATTENTION_NAME` known to transformers and returns it. A second call changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, packed_attention)
    return ATTENTION_NAME


def prepare_for_graphs(inside: bool) -> None:
    """Lets compiled layers call attention.

    The variable-length kernel takes the documents as a tensor and becomes a part of the graphs, `inside`. The others
    loop over documents and stay outside, and so does an exchange of a context group. A decorator would do the same, but
    import torch's compiler with this module, which costs every process a second or two.
    """
    from transformers import AttentionInterface

    name = register_packed_attention()
    AttentionInterface.register(name, packed_attention if inside else torch.compiler.disable(packed_attention))


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing,
    scaling: float,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each document; tokens of a picture see all of it.

    query: [1, query heads, T, head_dim]; key, value: [1, kv heads, T, head_dim]; returns [1, T, query heads, head_dim].
    With `sliding_window` W a token sees itself and the W - 1 tokens before it, as in transformers.
    """
    if packing.shared is not None:
        key, value = packing.shared.with_earlier(key, value, sliding_window)
    if packing.kernel == "varlen":
        return _varlen(query, key, value, packing, scaling, sliding_window), None
    if packing.kernel == "flex":
        return flex(query, key, value, packing.masks, scaling, sliding_window).transpose(1, 2), None
    if packing.kernel == "blocks":
        row = block_attention(query[0], key[0], value[0], packing.lengths, scaling, sliding_window, packing.reach)
        return row.transpose(0, 1).unsqueeze(0), None
    if packing.reach is not None:
        seen = documents_by_sdpa(query, key, value, packing.lengths, packing.reach, scaling, sliding_window)
        return seen.transpose(1, 2), None
    keys = (key.shape[2] - query.shape[2] + packing.lengths[0], *packing.lengths[1:])
    outputs = [
        _document(q, k, v, packing, scaling, sliding_window)
        for q, k, v in zip(query.split(packing.lengths, 2), key.split(keys, 2), value.split(keys, 2), strict=True)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def check_attention(wanted: str, device: torch.device, dtype: torch.dtype, pictures: bool = False) -> None:
    """Raises UserError if `train.attention` is `flash` and that kernel is not there, or not for the data's pictures."""
    if wanted == "flash" and pictures:
        raise UserError(
            "train.attention is flash, but the data have pictures, whose tokens see later ones, which that kernel does "
            "not compute; use `auto`, which takes it for passes without pictures"
        )
    if wanted == "flash" and attention_kernel(device, dtype) != "varlen":
        raise UserError(
            f"train.attention is flash, but {device} has no such kernel for {dtype} (it needs bf16, an Ampere GPU or "
            "newer, and torch 2.11 or newer); use `auto`, which takes the best one there is"
        )


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float, sliding_window: int | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    # The kernel's window counts the keys left of the query; transformers' window counts the query too.
    left = -1 if sliding_window is None else sliding_window - 1
    # Query heads share a key head. torch 2.11 accepts that as it is; later releases want to be told.
    groups: dict[str, Any] = {"enable_gqa": query.shape[1] != key.shape[1]} if packing.tells_groups else {}
    earlier = key.shape[2] - query.shape[2]
    output: Any = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        packing.cu_seqlens,
        packing.ends_of_keys(earlier),
        packing.longest,
        packing.longest + earlier,
        scale=scaling,
        window_size=(left, 0),
        **groups,
    )
    batched: Tensor = output.unsqueeze(0)
    return batched


@cache
def _varlen_keywords() -> frozenset[str]:
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


def _document(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float, window: int | None
) -> Tensor:
    """Attention inside one document. [1, heads, L, head_dim] in and out; keys may be more, and end with the queries."""
    length, keys, grouped = query.shape[2], key.shape[2], query.shape[1] != key.shape[1]
    if window is None or keys <= window:
        mask = packing.mask_of_first(query, keys - length) if keys > length else None
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
        )
    blocks = [
        _window_block(query, key, value, start, min(start + window, length), window, scaling, grouped)
        for start in range(0, length, window)
    ]
    return torch.cat(blocks, dim=2)


def _window_block(
    query: Tensor, key: Tensor, value: Tensor, start: int, end: int, window: int, scaling: float, grouped: bool
) -> Tensor:
    """Attention of queries start..end to the keys that at least one of them can see."""
    earlier = key.shape[2] - query.shape[2]
    first_key, last_key = max(0, earlier + start - window + 1), earlier + end
    rows = torch.arange(earlier + start, last_key, device=query.device)[:, None]
    columns = torch.arange(first_key, last_key, device=query.device)[None, :]
    visible = (columns <= rows) & (columns > rows - window)
    return functional.scaled_dot_product_attention(
        query[:, :, start:end],
        key[:, :, first_key:last_key],
        value[:, :, first_key:last_key],
        attn_mask=visible,
        scale=scaling,
        enable_gqa=grouped,
    )

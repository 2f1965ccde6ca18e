"""Causal attention of packed documents by matrix products over blocks of queries, for CPUs that multiply bf16.

As in FlashAttention (Dao et al. 2022, arXiv:2205.14135), no scores are kept; backward computes them again. One product
covers a block of queries, all keys that they can see, and all query heads that share a key head. So nearly all work is
in a few large products. torch's CPU kernel works in small tiles, which takes two cores two to three times as long
(bf16, heads of 256).

The product rounds scores to bf16, as in transformers' eager attention. All sums are in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..fused.library import call, library
from .reach import sees

BLOCK_QUERIES = 128  # the fastest of 64, 128, 256 and 512, at 256 to 2,048 tokens


@dataclass(frozen=True)
class Block:
    """Queries begin..end of a pass, and the keys first..last that they read; `window` as in `block_attention`.

    Keys may begin earlier than queries: the last query is the token of the key `last - 1`, unless `reach` is given.
    reach: of these queries, where some see later keys; None: none does
    """

    begin: int
    end: int
    first: int
    last: int
    window: int | None
    reach: Tensor | None = None

    def hide(self, scores: Tensor) -> Tensor:
        """Sets scores [heads, queries, keys] to -inf where a query may not see a key, in place."""
        if self.reach is not None:
            rows = torch.arange(self.begin, self.end, device=scores.device)
            columns = torch.arange(self.first, self.last, device=scores.device)
            return scores.masked_fill_(~sees(rows[:, None], columns, self.reach[:, None], self.window), -torch.inf)
        queries, keys = self.end - self.begin, self.last - self.first
        diagonal = scores[:, :, keys - queries :]
        diagonal.masked_fill_(_later(queries, scores.device), -torch.inf)
        if self.window is not None and keys > self.window:
            # The last query sees the fewest old keys: only the newest `window` of them.
            rows = torch.arange(self.last - queries, self.last, device=scores.device)[:, None]
            columns = torch.arange(self.first, self.last - self.window, device=scores.device)[None, :]
            scores[:, :, : keys - self.window].masked_fill_(columns <= rows - self.window, -torch.inf)
        return scores

    def described(self) -> tuple[Tensor | None, int, int, int, int]:
        """For `elementwise.cpp`: reach, queries, keys, the first query's own key, window. Keys count from `first`."""
        queries, keys = self.end - self.begin, self.last - self.first
        if self.reach is None:
            return None, queries, keys, keys - queries, self.window or 0
        return self.reach - self.first, queries, keys, self.begin - self.first, self.window or 0


def block_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: tuple[int, ...],
    scale: float,
    window: int | None,
    reach: Tensor | None = None,
) -> Tensor:
    """Attention inside each document. query: [heads, T, d]; key, value: [kv heads, T, d]; returns [heads, T, d].

    lengths: tokens of each document, in order; window: the keys that a query sees, its own included; None: all
    Keys may be more than queries: those of the first document that come before its first query.
    reach: see `Packing`; then there are as many keys as queries
    """
    output: Tensor = torch.ops.gemfleet.block_attention(query, key, value, lengths, scale, window, reach)
    return output


def blocks_of(
    lengths: Sequence[int], window: int | None, earlier: int = 0, reach: Tensor | None = None
) -> Iterator[Block]:
    """The blocks of all queries, document by document. earlier: keys before the first query"""
    start = first_key = 0
    for length in lengths:
        for begin in range(start, start + length, BLOCK_QUERIES):
            end = min(begin + BLOCK_QUERIES, start + length)
            first = first_key if window is None else max(first_key, earlier + begin - window + 1)
            own = None if reach is None else reach[begin:end]
            yield Block(begin, end, first, earlier + end if own is None else int(own.max()), window, own)
        start += length
        first_key = earlier + start


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    scale: float,
    window: int | None,
    reach: Tensor | None = None,
) -> Tensor:
    heads, tokens, width = query.shape
    # In memory it is [T, heads, d], as the next layer reads it.
    output = query.new_empty(tokens, heads, width).transpose(0, 1)
    for block in blocks_of(lengths, window, key.shape[1] - tokens, reach):
        seen, ours = slice(block.first, block.last), slice(block.begin, block.end)
        for head, group in _groups(heads, key.shape[0]):
            products = query[group, ours].reshape(-1, width) @ key[head, seen].T
            mixed = _weights(products, scale, block) @ value[head, seen]
            output[group, ours] = mixed.view(-1, block.end - block.begin, width)
    return output


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, *parts: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            output: Tensor = torch.ops.gemfleet.block_attention(query, key, value, *parts)
        ctx.save_for_backward(query, key, value, output)
        ctx.parts = parts
        return output

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradient = upstream[0]
        query, key, value, output = ctx.saved_tensors
        lengths, scale, window, reach = ctx.parts
        heads, tokens, width = query.shape
        query_gradient = query.new_empty(tokens, heads, width).transpose(0, 1)
        key_gradient = torch.zeros_like(key, dtype=torch.float32)
        value_gradient = torch.zeros_like(value, dtype=torch.float32)
        shifts = (gradient * output).sum(-1, dtype=torch.float32)
        for block in blocks_of(lengths, window, key.shape[1] - tokens, reach):
            seen, ours = slice(block.first, block.last), slice(block.begin, block.end)
            for head, group in _groups(heads, key.shape[0]):
                products = query[group, ours].reshape(-1, width) @ key[head, seen].T
                outer = gradient[group, ours].reshape(-1, width)
                away, shift = outer @ value[head, seen].T, shifts[group, ours].reshape(-1, 1).contiguous()
                weights, inner = _weights_and_gradient(products, away, shift, scale, block)
                value_gradient[head, seen] += weights.T @ outer
                query_gradient[group, ours] = (inner @ key[head, seen]).view(-1, block.end - block.begin, width)
                key_gradient[head, seen] += inner.T @ query[group, ours].reshape(-1, width)
        return query_gradient, key_gradient.to(key.dtype), value_gradient.to(value.dtype), None, None, None, None


# One operator, so that recomputation can keep its result like that of any other attention. `torch.library.custom_op`
# would do the same, but import torch's compiler at the first call, which costs every process a second or two.
_LIBRARY = torch.library.Library("gemfleet", "DEF")
_LIBRARY.define(
    "block_attention(Tensor query, Tensor key, Tensor value, int[] lengths, float scale, int? window, Tensor? reach)"
    " -> Tensor"
)
_LIBRARY.impl("block_attention", _attend, "CPU")
_LIBRARY.impl("block_attention", _Differentiable.apply, "AutogradCPU")


def _groups(heads: int, kv_heads: int) -> Iterator[tuple[int, slice]]:
    """Each key head, with the query heads that share it."""
    share = heads // kv_heads
    return ((head, slice(head * share, (head + 1) * share)) for head in range(kv_heads))


def _weights(products: Tensor, scale: float, block: Block) -> Tensor:
    """Of queries' products with keys, [heads * queries, keys], the weights in the same dtype; each row sums to 1."""
    if not _is_fused(products):
        return _exact_weights(products, scale, block).to(products.dtype)
    reach, queries, *sizes = block.described()
    call("attend", products, reach, products.shape[0] // queries, queries, *sizes, scale)
    return products


def _weights_and_gradient(
    products: Tensor, away: Tensor, shift: Tensor, scale: float, block: Block
) -> tuple[Tensor, Tensor]:
    """The weights, and the gradient of the products: a weight times the distance of its gradient from the row's mean.

    away: the weights' gradients, [heads * queries, keys]; shift: fp32 [heads * queries, 1], their means
    """
    if not _is_fused(products):
        weights = _exact_weights(products, scale, block)
        kept = weights.to(products.dtype)
        return kept, away.float().sub_(shift).mul_(weights).mul_(scale).to(products.dtype)
    reach, queries, *sizes = block.described()
    call("attend_back", products, away, shift, reach, products.shape[0] // queries, queries, *sizes, scale)
    return products, away


def _exact_weights(products: Tensor, scale: float, block: Block) -> Tensor:
    """fp32 [heads * queries, keys]"""
    scores = products.view(-1, block.end - block.begin, products.shape[1]).float()
    return block.hide(scores.mul_(scale)).softmax(-1).flatten(0, 1)


def _is_fused(products: Tensor) -> bool:
    return products.dtype == torch.bfloat16 and library() is not None


def _later(queries: int, device: torch.device) -> Tensor:
    """bool [queries, queries], True if the key comes after the query."""
    return torch.ones(queries, queries, dtype=torch.bool, device=device).triu_(1)

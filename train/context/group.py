"""Context parallelism: the ranks of a group share the tokens of each pass, so rows may be longer than one device holds.

The ranks form a mesh, data by context, with the context innermost: neighbours share a pass. All ranks of a group get
the same rows. Loss and gradients are sums over all ranks, as without a context.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch.distributed as dist
from torch import Tensor

from ..interfaces import PackedRows
from .exchange import Exchange
from .shares import LEAST_TOKENS, Cost, Share, divide, transfers


@dataclass(eq=False)
class SharedPass:
    """One pass, divided: its rows, the shares of all ranks, and which one is this rank's."""

    rows: PackedRows
    shares: tuple[Share, ...]
    index: int
    group: Any
    _exchanges: dict[int | None, Exchange] = field(default_factory=dict)

    @property
    def own(self) -> Share:
        return self.shares[self.index]

    def with_earlier(self, key: Tensor, value: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
        """Key and value [1, kv heads, T, d] of this share, with all that its queries see of earlier ones. Collective.

        window: of the layer; None: a global one
        """
        if window not in self._exchanges:
            self._exchanges[window] = self._exchange(window)
        return self._exchanges[window](key, value)

    def _exchange(self, window: int | None) -> Exchange:
        moved = transfers(self.shares, window)
        sends = tuple(slice(piece.start - self.own.begin, piece.stop - self.own.begin) for piece in moved[self.index])
        gets = tuple(len(row[self.index]) for row in moved)
        return Exchange(sends, gets, not any(piece for row in moved for piece in row), self.group)


@dataclass(frozen=True)
class ContextGroup:
    """The ranks that share passes with this one. size: their number; index: this rank's, from 0"""

    size: int
    index: int
    group: Any
    cost: Cost

    def shared(self, rows: PackedRows) -> SharedPass:
        """The division of a pass over these rows, filled up so that every rank has some tokens. Equal on all ranks."""
        rows = rows.padded_to(self.size * LEAST_TOKENS)
        scored = np.append(rows.supervised[1:], False)
        return SharedPass(rows, divide(rows.document_lengths, scored, self.size, self.cost), self.index, self.group)


def make_group(size: int, cost: Cost) -> ContextGroup | None:
    """The group of this rank; None if each rank computes its own passes. `size` divides the world. Collective."""
    if size == 1:
        return None
    groups = [dist.new_group(list(range(first, first + size))) for first in range(0, dist.get_world_size(), size)]
    place, index = divmod(dist.get_rank(), size)
    return ContextGroup(size, index, groups[place], cost)

"""Divides a pass among the ranks of a context group: who computes which tokens, and whose keys each of them needs.

Pure functions on numpy arrays. A share is a contiguous piece of the pass, and may begin inside a document. Its first
tokens then see keys of earlier shares: in a sliding layer those of the window, in a global one all of the document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

LEAST_TOKENS = 2  # in a share: compiled layers have the same code for every length but 1


@dataclass(frozen=True)
class Cost:
    """What a token costs, in any unit.

    token, scored:              a token in all products of the layers, and a scored one in the head
    sliding_pair, global_pair:  a query and a key that it sees, in all sliding or all global layers
    window:                     keys that a query of a sliding layer sees, its own included
    """

    token: float
    scored: float
    sliding_pair: float
    global_pair: float
    window: int


@dataclass(frozen=True)
class Share:
    """Tokens begin..end of a pass, for one rank.

    position: of the first token in its document
    lengths:  the share's tokens of each document, in order; the first and the last may be pieces
    """

    begin: int
    end: int
    position: int
    lengths: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return self.end - self.begin

    def before(self, window: int | None) -> int:
        """The keys of earlier shares that this share's queries see; window: None for a global layer."""
        return self.position if window is None else min(self.position, window - 1)


def divide(lengths: NDArray[np.int32], scored: NDArray[np.bool_], count: int, cost: Cost) -> tuple[Share, ...]:
    """Contiguous shares of about equal work, each of at least `LEAST_TOKENS` tokens.

    lengths: tokens of each document; scored: bool [T], True where the next token is a target. T is at least
    count * LEAST_TOKENS.
    """
    starts = np.cumsum(lengths) - lengths
    positions = np.arange(int(lengths.sum())) - np.repeat(starts, lengths)
    work = np.cumsum(_work(positions, scored, cost))
    wanted = work[-1] * np.arange(1, count) / count
    borders = [0, *np.searchsorted(work, wanted).tolist(), len(work)]
    for share in range(1, count):
        borders[share] = max(borders[share], borders[share - 1] + LEAST_TOKENS)
    for share in reversed(range(1, count)):
        borders[share] = min(borders[share], borders[share + 1] - LEAST_TOKENS)
    return tuple(_share(begin, end, starts, lengths) for begin, end in pairwise(borders))


def transfers(shares: Sequence[Share], window: int | None) -> list[list[range]]:
    """The tokens of the pass whose keys rank i of the group sends to rank j, at [i][j]. They may be none."""
    return [[_owned(sender, receiver, window) for receiver in shares] for sender in shares]


def _work(positions: NDArray[np.int64], scored: NDArray[np.bool_], cost: Cost) -> NDArray[np.float64]:
    """The cost of each token."""
    seen = positions + 1
    pairs = cost.global_pair * seen + cost.sliding_pair * np.minimum(seen, cost.window)
    work: NDArray[np.float64] = cost.token + cost.scored * scored + pairs
    return work


def _share(begin: int, end: int, starts: NDArray[np.int32], lengths: NDArray[np.int32]) -> Share:
    pieces = np.minimum(starts + lengths, end) - np.maximum(starts, begin)
    first = int(np.searchsorted(starts, begin, side="right")) - 1
    return Share(begin, end, begin - int(starts[first]), tuple(int(piece) for piece in pieces if piece > 0))


def _owned(sender: Share, receiver: Share, window: int | None) -> range:
    """The part of what the receiver needs that the sender has."""
    first = max(receiver.begin - receiver.before(window), sender.begin)
    return range(first, max(first, min(receiver.begin, sender.end)))

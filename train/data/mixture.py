"""Mixes several data sets into the examples of an epoch. Pure functions of their sizes, shares, the seed and the epoch.

The number of ranks has no part in it, and neither has the step from which a run goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heappop, heappush

import numpy as np

from ..config.sections.data import DataSet
from .packing import Ints, epoch_order, split_eval
from .report import DataReport

PARTS = 2**40  # a share is taken as so many parts of the whole


@dataclass(frozen=True)
class Mixture:
    """The sets to train on.

    sizes: the examples of each set, above 0
    shares: of each set in every epoch; they sum to 1. None: each example appears once in an epoch
    """

    sizes: tuple[int, ...]
    shares: tuple[float, ...] | None = None

    @property
    def examples(self) -> int:
        """The examples of an epoch, whatever the shares are: as many as all sets have together."""
        return sum(self.sizes)

    @cached_property
    def turns(self) -> Ints:
        """The set from which each example of an epoch comes, int64 [examples]. It is the same in every epoch."""
        return interleaved(self._parts, self.examples)

    @property
    def counts(self) -> Ints:
        """The examples of each set in an epoch, int64 [sets]."""
        if self.shares is None or len(self.sizes) == 1:
            return np.array(self.sizes, np.int64)
        return np.bincount(self.turns, minlength=len(self.sizes))

    @property
    def _parts(self) -> list[int]:
        return list(self.sizes) if self.shares is None else [max(1, round(share * PARTS)) for share in self.shares]

    def order(self, seed: int, epoch: int) -> Ints:
        """The examples of one epoch, int64 [examples], as indices into all sets end to end.

        One set is in the order of `epoch_order`. Of several, each goes through permutations of its own, one after the
        other: a set goes on where the epoch before stopped, and begins its next permutation where one ends.
        """
        if len(self.sizes) == 1:
            return epoch_order(self.sizes[0], seed, epoch)
        order = np.empty(self.examples, np.int64)
        starts = np.cumsum([0, *self.sizes])
        for number, (size, count) in enumerate(zip(self.sizes, self.counts.tolist(), strict=True)):
            order[self.turns == number] = starts[number] + _stretch(size, epoch * count, count, seed, number)
        return order

    def describe(self) -> str:
        """Sizes and shares, for the digest of a run's data; empty for one set."""
        if len(self.sizes) == 1:
            return ""
        shares = [""] * len(self.sizes) if self.shares is None else [f" at {100 * share:.6g}%" for share in self.shares]
        return ", ".join(f"{size:,} examples{share}" for size, share in zip(self.sizes, shares, strict=True))


@dataclass(frozen=True)
class Division:
    """The use of all examples to train on. Indices are into all sets end to end.

    train: int64, set by set, each ascending; the mixture's indices are into it
    held_out: of each set of which something is held out to evaluate on, by the set's name; each int64, ascending
    """

    mixture: Mixture
    train: Ints
    held_out: dict[str, Ints]


def divide(
    sets: Sequence[DataSet], counts: Sequence[Ints], fraction: float, seed: int, reports: Sequence[DataReport]
) -> Division:
    """Holds out a share of each set to evaluate on, mixes the rest, and tells each set's report.

    counts: see `TokenBlock.counts`, of each example of a set, N above 0; fraction: see `split_eval`
    """
    starts = np.cumsum([0, *map(len, counts)])
    split = [split_eval(len(found), fraction, seed, number) for number, found in enumerate(counts)]
    shares = [found.share for found in sets if found.share is not None]
    mixture = Mixture(tuple(len(mine) for mine, _ in split), tuple(shares) or None)
    for report, found, (mine, held_out), count in zip(reports, counts, split, mixture.counts.tolist(), strict=True):
        report.use(found[mine], len(held_out), count)
    return Division(
        mixture,
        np.concatenate([start + mine for start, (mine, _) in zip(starts, split, strict=False)]),
        {
            found.name: start + held_out
            for found, start, (_, held_out) in zip(sets, starts, split, strict=False)
            if len(held_out)
        },
    )


def interleaved(parts: Sequence[int], length: int) -> Ints:
    """The set of each of `length` places, where set i is due in `parts[i]` of every `sum(parts)` places. int64 [length]

    Before every place, each set is less than one place away from its share. Such a sequence always exists, and taking
    the set whose next place has the earliest deadline finds it: Baruah, Cohen, Plaxton and Varvel, "Proportionate
    progress: a notion of fairness in resource allocation", Algorithmica 15 (1996), for a single resource.
    """
    whole = sum(parts)
    done = [0] * len(parts)
    begins = [(0, number) for number in range(len(parts))]  # when the next place of a set may be taken
    ready: list[tuple[int, int]] = []  # until when it has to be taken
    turns = np.empty(length, np.int64)
    for place in range(length):
        while begins and begins[0][0] <= place:
            _, number = heappop(begins)
            heappush(ready, (-(-(done[number] + 1) * whole // parts[number]), number))
        _, number = heappop(ready)
        turns[place] = number
        done[number] += 1
        heappush(begins, (done[number] * whole // parts[number], number))
    return turns


def _stretch(size: int, first: int, count: int, seed: int, number: int) -> Ints:
    """`count` examples of a set, from place `first` of its permutations end to end."""
    rounds = range(first // size, -(-(first + count) // size))
    permutations = [epoch_order(size, seed, one, number) for one in rounds]
    begin = first % size
    return np.concatenate([np.empty(0, np.int64), *permutations])[begin : begin + count]

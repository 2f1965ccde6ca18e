"""Makes optimizer steps of token blocks: order, division among ranks, packing. Pure functions on numpy arrays.

The number of examples, seed, epoch and global batch decide which examples a step has. World size and `max_length`
only decide where those examples lie.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..interfaces import Ints as Ints
from ..interfaces import PackedRows, StepRows, no_pictures

_EVAL_STREAM = 2**31  # no epoch uses this stream of random numbers


@dataclass(frozen=True)
class TokenBlock:
    """N tokenised examples, end to end.

    tokens:     int32 [T]
    supervised: bool  [T], True where the token is a target
    offsets:    int64 [N + 1]; example i is `tokens[offsets[i]:offsets[i + 1]]`
    pictures, picture_starts: int64 [P], as in `PackedRows`
    """

    tokens: NDArray[np.int32]
    supervised: NDArray[np.bool_]
    offsets: Ints
    pictures: Ints = field(default_factory=no_pictures)
    picture_starts: Ints = field(default_factory=no_pictures)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Ints:
        """Tokens in each example, int64 [N]."""
        return np.diff(self.offsets)

    @property
    def supervised_tokens(self) -> int:
        return int(self.supervised.sum())

    @property
    def counts(self) -> Ints:
        """Tokens, supervised tokens and pictures of each example, int64 [N, 3]."""
        sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.supervised, dtype=np.int64)])
        pictures = np.searchsorted(self.picture_starts, self.offsets)
        return np.stack([self.lengths, np.diff(sums[self.offsets]), np.diff(pictures)], axis=1)

    def select(self, indices: Sequence[int] | Ints) -> TokenBlock:
        """The examples at `indices`, in that order."""
        index = np.asarray(indices, dtype=np.int64)
        starts, lengths = self.offsets[index], self.lengths[index]
        offsets = _ends(lengths)
        source = _places(starts, offsets)
        bounds = np.searchsorted(self.picture_starts, self.offsets)
        first, counts = bounds[index], np.diff(bounds)[index]
        theirs = _places(first, _ends(counts))
        moved = self.picture_starts[theirs] + np.repeat(offsets[:-1] - starts, counts)
        return TokenBlock(self.tokens[source], self.supervised[source], offsets, self.pictures[theirs], moved)

    @staticmethod
    def concatenate(blocks: Sequence[TokenBlock]) -> TokenBlock:
        """All examples of `blocks`, in order. No blocks give an empty block."""
        before = _ends(np.array([len(block.tokens) for block in blocks], np.int64)).tolist()
        return TokenBlock(
            np.concatenate([np.empty(0, np.int32), *(block.tokens for block in blocks)]),
            np.concatenate([np.empty(0, np.bool_), *(block.supervised for block in blocks)]),
            _ends(np.concatenate([np.empty(0, np.int64), *(block.lengths for block in blocks)])),
            np.concatenate([no_pictures(), *(block.pictures for block in blocks)]),
            np.concatenate([no_pictures(), *(b.picture_starts + at for b, at in zip(blocks, before, strict=False))]),
        )


def epoch_order(examples: int, seed: int, epoch: int, number: int = 0) -> Ints:
    """The order of all examples in one epoch: a permutation of `range(examples)`, int64.

    number: of the data set, as each of several has permutations of its own
    Sorts by raw Philox output, whose stream numpy guarantees for every version and platform.
    """
    keys = np.random.Philox(np.random.SeedSequence([seed, epoch, number])).random_raw(examples)
    return np.argsort(keys, kind="stable").astype(np.int64)


def split_eval(examples: int, fraction: float, seed: int, number: int = 0) -> tuple[Ints, Ints]:
    """Splits examples by the seed into (train, eval) indices, each ascending. number: see `epoch_order`

    If the fraction is above 0 and there are two examples or more, both sides get at least one.
    """
    count = 0
    if fraction > 0 and examples >= 2:
        count = min(max(1, round(examples * fraction)), examples - 1)
    order = epoch_order(examples, seed, _EVAL_STREAM, number)
    return np.sort(order[count:]), np.sort(order[:count])


def steps_per_epoch(examples: int, global_batch: int) -> int:
    """Optimizer steps in one epoch. The last one may hold fewer than `global_batch` examples."""
    return -(-examples // global_batch)


def step_indices(order: Ints, step_in_epoch: int, global_batch: int) -> Ints:
    """The examples of one optimizer step."""
    return order[step_in_epoch * global_batch : (step_in_epoch + 1) * global_batch]


def divide_among_ranks(lengths: Sequence[int] | Ints, world_size: int) -> list[list[int]]:
    """Indices for each rank, balanced by tokens: the longest example goes first, to the rank with the fewest tokens.

    Ties go to the earlier example and the lower rank. With fewer examples than ranks, some ranks stay empty.
    """
    ranks: list[list[int]] = [[] for _ in range(world_size)]
    loads = [(0, rank) for rank in range(world_size)]
    for index in _longest_first(lengths):
        load, rank = loads.pop(0)
        ranks[rank].append(index)
        insort(loads, (load + int(lengths[index]), rank))
    return [sorted(indices) for indices in ranks]


def pack_rows(lengths: Sequence[int] | Ints, max_length: int) -> list[list[int]]:
    """Rows of indices, each of at most `max_length` tokens, by first-fit decreasing.

    No length may exceed `max_length`: the tokeniser leaves such examples out or cuts them off.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in _longest_first(lengths):
        length = int(lengths[index])
        assert length <= max_length, f"example of {length} tokens in rows of {max_length}"
        row = next((row for row, free in enumerate(room) if free >= length), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(max_length)
        rows[row].append(index)
        room[row] -= length
    return rows


def pack_block(block: TokenBlock, max_length: int) -> PackedRows:
    """All examples of `block` as packed rows of one rank."""
    rows = pack_rows(block.lengths, max_length)
    packed = block.select([index for row in rows for index in row])
    return PackedRows(
        packed.tokens,
        packed.supervised,
        packed.lengths.astype(np.int32),
        np.array([len(row) for row in rows], dtype=np.int32),
        packed.pictures,
        packed.picture_starts,
    )


def pack_step(step: TokenBlock, world_size: int, max_length: int) -> list[PackedRows]:
    """The packed examples of one optimizer step, divided among `world_size` ranks: an entry for each rank."""
    return [pack_block(step.select(mine), max_length) for mine in divide_among_ranks(step.lengths, world_size)]


@dataclass(frozen=True)
class PackedBlock:
    """Several steps for all ranks in a few flat arrays, which an object store can hand out without a copy.

    tokens, supervised, document_lengths, row_documents: as in `PackedRows`, end to end by step, then by rank
    bounds: int64 [steps * world_size + 1, 4], the token, document, row and picture at which each (step, rank) begins
    counts: int64 [steps, 3], the examples, tokens and supervised tokens of each whole step
    pictures: as in `PackedRows`; picture_starts: of those, counted from the first token of their (step, rank)
    """

    tokens: NDArray[np.int32]
    supervised: NDArray[np.bool_]
    document_lengths: NDArray[np.int32]
    row_documents: NDArray[np.int32]
    bounds: Ints
    counts: Ints
    pictures: Ints
    picture_starts: Ints

    @property
    def world_size(self) -> int:
        return (len(self.bounds) - 1) // len(self.counts)

    def step(self, index: int, rank: int) -> StepRows:
        """The rows of `rank` in step `index` of this block, as views of its arrays."""
        at = index * self.world_size + rank
        (t0, d0, r0, p0), (t1, d1, r1, p1) = self.bounds[at], self.bounds[at + 1]
        rows = PackedRows(
            self.tokens[t0:t1],
            self.supervised[t0:t1],
            self.document_lengths[d0:d1],
            self.row_documents[r0:r1],
            self.pictures[p0:p1],
            self.picture_starts[p0:p1],
        )
        examples, tokens, supervised = self.counts[index].tolist()
        return StepRows(rows, examples, tokens, supervised)


def pack_steps(steps: Sequence[TokenBlock], world_size: int, max_length: int) -> PackedBlock:
    """Packs each step's examples for all ranks. `steps` may not be empty."""
    packed = [rows for step in steps for rows in pack_step(step, world_size, max_length)]
    sizes = [(len(rows.tokens), len(rows.document_lengths), rows.row_count, len(rows.pictures)) for rows in packed]
    return PackedBlock(
        np.concatenate([rows.tokens for rows in packed]),
        np.concatenate([rows.supervised for rows in packed]),
        np.concatenate([rows.document_lengths for rows in packed]),
        np.concatenate([rows.row_documents for rows in packed]),
        np.concatenate([np.zeros((1, 4), np.int64), np.cumsum(np.array(sizes, np.int64), axis=0)]),
        np.array([(len(step), len(step.tokens), step.supervised_tokens) for step in steps], np.int64),
        np.concatenate([rows.pictures for rows in packed]),
        np.concatenate([rows.picture_starts for rows in packed]),
    )


def _longest_first(lengths: Sequence[int] | Ints) -> list[int]:
    order: list[int] = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist()
    return order


def _places(starts: Ints, offsets: Ints) -> Ints:
    """The places of stretches that begin at `starts`, end to end. offsets: where each begins in the result, [N + 1]"""
    return np.repeat(starts - offsets[:-1], np.diff(offsets)) + np.arange(offsets[-1])


def _ends(lengths: Ints) -> Ints:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])

"""Divides a step among ranks of unequal speed. Pure functions: each rank divides the whole step itself, all alike.

Which examples a step owns does not change, so neither its loss nor its gradient does, but for rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..interfaces import PackedRows, Shares, StepRows
from .packing import (
    Ints,
    PackedBlock,
    TokenBlock,
    divide_among_ranks,
    longest_first,
    pack_block,
    pack_documents,
    pack_rows,
)


def rows_of_rank(block: PackedBlock, index: int, rank: int, shares: Shares | None) -> StepRows:
    """The rows of `rank` in step `index` of the block. shares: None: equal ones, as the block was packed"""
    equal = block.step(index, rank)
    if shares is None:
        return equal
    rows = pack_share(block.whole_step(index), rank, shares, block.max_length)
    return StepRows(rows, equal.step_examples, equal.step_tokens, equal.step_supervised_tokens)


def divide_by_weights(lengths: Sequence[int] | Ints, weights: Sequence[int]) -> list[list[int]]:
    """Indices for each rank, its tokens in proportion to its weight: the longest example goes first, to the rank that
    would be done with it soonest.

    Ties go to the earlier example and the lower rank. Equal weights divide as `divide_among_ranks` does.
    """
    ranks: list[list[int]] = [[] for _ in weights]
    loads, speeds = np.zeros(len(weights)), np.array(weights, np.float64)
    for index in longest_first(lengths):
        rank = int(np.argmin((loads + lengths[index]) / speeds))
        ranks[rank].append(index)
        loads[rank] += lengths[index]
    return [sorted(indices) for indices in ranks]


def pack_share(step: TokenBlock, rank: int, shares: Shares, max_length: int) -> PackedRows:
    """The rows of one rank. With equal passes it has as many rows as the rank with the most, if its examples suffice.

    A slower rank's rows are then shorter, so that no rank waits for it in a pass.
    """
    divided = divide_by_weights(step.lengths, shares.weights)
    mine = step.select(divided[rank])
    if not shares.equal_passes:
        return pack_block(mine, max_length)
    most = max(len(pack_rows(step.lengths[indices], max_length)) for indices in divided)
    rows = [row for row in divide_among_ranks(mine.lengths, most) if row]
    fits = all(int(mine.lengths[row].sum()) <= max_length for row in rows)
    return pack_documents(mine, rows if fits else pack_rows(mine.lengths, max_length))

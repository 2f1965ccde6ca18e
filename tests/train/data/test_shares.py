"""Shares by speed: what each rank gets of a step, and that together they are the whole step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from gemfleet.train.data.packing import PackedBlock, TokenBlock, divide_among_ranks, pack_steps
from gemfleet.train.data.shares import divide_by_weights, rows_of_rank
from gemfleet.train.interfaces import PackedRows, Shares
from hypothesis import given
from hypothesis import strategies as st

MAX_LENGTH = 64
lengths = st.lists(st.integers(1, MAX_LENGTH), max_size=40)


def block_of(sizes: list[int]) -> TokenBlock:
    """Examples whose tokens are all different, so that none can be lost or doubled unseen."""
    total = sum(sizes)
    tokens, supervised = np.arange(total, dtype=np.int32), np.arange(total) % 3 > 0
    return TokenBlock(tokens, supervised, np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64))


def divided(block: PackedBlock, index: int, shares: Shares | None) -> list[PackedRows]:
    return [rows_of_rank(block, index, rank, shares).rows for rank in range(block.world_size)]


@given(lengths, st.integers(1, 9), st.integers(1, 5000))
def test_equal_weights_divide_as_without(sizes: list[int], ranks: int, weight: int) -> None:
    assert divide_by_weights(sizes, [weight] * ranks) == divide_among_ranks(sizes, ranks)


@given(lengths, st.lists(st.integers(1, 3000), min_size=1, max_size=6))
def test_no_rank_is_later_than_the_others_by_more_than_an_example(sizes: list[int], weights: list[int]) -> None:
    ranks = divide_by_weights(sizes, weights)
    assert sorted(index for indices in ranks for index in indices) == list(range(len(sizes)))
    ends = [sum(sizes[i] for i in indices) / weight for indices, weight in zip(ranks, weights, strict=True)]
    ideal = sum(sizes) / sum(weights)
    longest = max(sizes, default=0)
    assert max(ends) <= ideal + longest / min(weights) + 1e-9


@pytest.mark.parametrize("equal_passes", [False, True])
@given(
    sizes=st.lists(st.lists(st.integers(1, MAX_LENGTH), min_size=1, max_size=30), min_size=1, max_size=3),
    weights=st.lists(st.integers(100, 3000), min_size=1, max_size=4),
)
def test_the_ranks_rows_are_the_whole_step(equal_passes: bool, sizes: list[list[int]], weights: list[int]) -> None:
    steps = [block_of(one) for one in sizes]
    block = pack_steps(steps, len(weights), MAX_LENGTH)
    for index, step in enumerate(steps):
        rows = divided(block, index, Shares(tuple(weights), equal_passes))
        assert sorted(np.concatenate([r.tokens for r in rows])) == list(range(len(step.tokens)))
        assert sum(r.supervised_tokens for r in rows) == step.supervised_tokens
        for one in rows:
            ends = np.cumsum(one.row_documents)
            assert all(0 < row.sum() <= MAX_LENGTH for row in np.split(one.document_lengths, ends[:-1]) if ends.size)
            assert (one.supervised == (one.tokens % 3 > 0)).all()


def test_equal_shares_are_the_packed_rows_themselves() -> None:
    block = pack_steps([block_of([9, 5, 30, 20, 11])], 2, MAX_LENGTH)
    for rank, rows in enumerate(divided(block, 0, None)):
        assert np.shares_memory(rows.tokens, block.step(0, rank).rows.tokens)


def test_pictures_stay_with_their_examples() -> None:
    step = replace(block_of([9, 5, 30, 20, 11]), pictures=np.array([7, 8]), picture_starts=np.array([3, 50]))
    block = pack_steps([block_of([4]), step], 2, MAX_LENGTH)
    for shares in (None, Shares((1500, 500), equal_passes=False)):
        rows = divided(block, 1, shares)
        seen = {int(p): int(r.tokens[at]) for r in rows for p, at in zip(r.pictures, r.picture_starts, strict=True)}
        assert seen == {7: int(step.tokens[3]), 8: int(step.tokens[50])}


def test_with_equal_passes_a_slower_rank_has_as_many_rows_and_shorter_ones() -> None:
    block = pack_steps([block_of([8] * 48)], 2, MAX_LENGTH)
    fast, slow = divided(block, 0, Shares((1333, 667), equal_passes=True))
    assert fast.row_count == slow.row_count == 4
    assert len(fast.tokens) == 2 * len(slow.tokens)
    fast, slow = divided(block, 0, Shares((1333, 667), equal_passes=False))
    assert (fast.row_count, slow.row_count) == (4, 2)

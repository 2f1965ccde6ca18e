"""Every example exactly once, no row too long, and a step's examples whatever the world size."""

from __future__ import annotations

import numpy as np
from gemfleet.train.data.packing import (
    TokenBlock,
    divide_among_ranks,
    epoch_order,
    pack_rows,
    pack_steps,
    split_eval,
    steps_per_epoch,
)
from gemfleet.train.interfaces import PackedRows
from gemfleet.train.local.source import LocalBlockSource
from hypothesis import given, settings
from hypothesis import strategies as st

MAX_LENGTH = 16
PINNED_ORDER = [0, 1, 4, 2, 6, 5, 7, 3]
LENGTHS = st.lists(st.integers(1, MAX_LENGTH), min_size=1, max_size=40)


def block_of(lengths: list[int]) -> TokenBlock:
    """Example i is `lengths[i]` times the token i, supervised but for its first token.

    It has the picture i at its second token and, with 9 tokens or more, again at its sixth.
    """
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    supervised = np.ones(offsets[-1], np.bool_)
    supervised[offsets[:-1]] = False
    starts = [(i, offsets[i] + at) for i, length in enumerate(lengths) for at in (1, 5) if length > max(1, 2 * at - 2)]
    pictures, places = np.array(starts, np.int64).reshape(-1, 2).T
    tokens = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    return TokenBlock(tokens, supervised, offsets, pictures, places)


def check_pictures(rows: PackedRows, lengths: list[int]) -> int:
    """Each picture is in its own document, at its place. Returns how many there are."""
    starts = np.cumsum(rows.document_lengths) - rows.document_lengths
    document = np.searchsorted(starts, rows.picture_starts, side="right") - 1
    assert (rows.tokens[rows.picture_starts] == rows.pictures).all()
    assert set((rows.picture_starts - starts[document]).tolist()) <= {1, 5}
    wanted = [lengths[example] for example in rows.tokens[starts].tolist()]
    assert len(rows.pictures) == sum((length > 1) + (length > 8) for length in wanted)
    return len(rows.pictures)


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, global_batch=st.integers(1, 12), world_size=st.integers(1, 5), seed=st.integers(0, 3))
def test_each_step_trains_its_own_examples_whatever_the_world_size(
    lengths: list[int], global_batch: int, world_size: int, seed: int
) -> None:
    source = LocalBlockSource(
        block_of(lengths), {}, global_batch=global_batch, max_length=MAX_LENGTH, seed=seed, world_size=world_size
    )
    order = epoch_order(len(lengths), seed, 2)
    seen: list[int] = []
    for step in range(source.steps_per_epoch):
        mine: list[int] = []
        tokens = supervised = 0
        for rank in range(world_size):
            entry = source.step(2, step, rank)
            rows = entry.rows
            assert rows.document_lengths.sum() == len(rows.tokens) == len(rows.supervised)
            assert rows.row_documents.sum() == len(rows.document_lengths)
            ends = np.concatenate([[0], np.cumsum(rows.document_lengths)])
            for start, length in zip(ends[:-1], rows.document_lengths, strict=True):
                example = int(rows.tokens[start])
                assert (rows.tokens[start : start + length] == example).all()
                assert length == lengths[example]
                assert not rows.supervised[start]
                mine.append(example)
            assert sum(check_pictures(row, lengths) for row in rows.micro_batches(1)) == len(rows.pictures)
            assert check_pictures(rows, lengths) == len(rows.padded_to(99).pictures)
            for row in rows.micro_batches(1):
                assert len(row.tokens) <= MAX_LENGTH
            tokens, supervised = tokens + len(rows.tokens), supervised + rows.supervised_tokens
        assert (entry.step_examples, entry.step_tokens, entry.step_supervised_tokens) == (len(mine), tokens, supervised)
        assert sorted(mine) == sorted(order[step * global_batch : (step + 1) * global_batch].tolist())
        seen += mine
    assert sorted(seen) == list(range(len(lengths)))


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS, world_size=st.integers(1, 6))
def test_ranks_get_a_balanced_share(lengths: list[int], world_size: int) -> None:
    ranks = divide_among_ranks(lengths, world_size)
    assert sorted(index for rank in ranks for index in rank) == list(range(len(lengths)))
    loads = [sum(lengths[index] for index in rank) for rank in ranks]
    assert max(loads) - min(loads) <= max(lengths)


@settings(max_examples=60, deadline=None)
@given(lengths=LENGTHS)
def test_rows_are_full_enough_that_no_two_could_be_one(lengths: list[int]) -> None:
    rows = pack_rows(lengths, MAX_LENGTH)
    sizes = sorted(sum(lengths[index] for index in row) for row in rows)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert sizes[-1] <= MAX_LENGTH
    assert len(sizes) < 2 or sizes[0] + sizes[1] > MAX_LENGTH


def test_the_order_is_pinned_so_that_a_resumed_run_continues_exactly() -> None:
    assert epoch_order(8, 42, 0).tolist() == PINNED_ORDER
    assert epoch_order(8, 42, 1).tolist() != PINNED_ORDER
    assert epoch_order(8, 43, 0).tolist() != PINNED_ORDER
    assert steps_per_epoch(9, 4) == 3


@settings(max_examples=60, deadline=None)
@given(examples=st.integers(0, 50), fraction=st.floats(0, 0.99), seed=st.integers(0, 5))
def test_the_split_is_a_partition_with_something_on_both_sides(examples: int, fraction: float, seed: int) -> None:
    train, held_out = split_eval(examples, fraction, seed)
    assert sorted([*train, *held_out]) == list(range(examples))
    assert (len(held_out) > 0) == (fraction > 0 and examples >= 2)
    assert examples == 0 or len(train) > 0


def test_more_ranks_than_examples_leaves_ranks_empty_and_counts_whole() -> None:
    block = pack_steps([block_of([3, 5])], 4, MAX_LENGTH)
    steps = [block.step(0, rank) for rank in range(4)]
    assert [step.rows.row_count for step in steps] == [1, 1, 0, 0]
    assert {step.step_tokens for step in steps} == {8}

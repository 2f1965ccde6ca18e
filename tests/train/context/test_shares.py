"""Shares of a pass cover it, cost about the same, and get exactly the keys that their queries see."""

from __future__ import annotations

import numpy as np
import pytest
from gemfleet.train.context.shares import LEAST_TOKENS, Cost, divide, transfers
from hypothesis import given, settings
from hypothesis import strategies as st

COST = Cost(token=40.0, scored=10.0, sliding_pair=1.0, global_pair=0.2, window=5)


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8).filter(lambda found: sum(found) >= 4 * LEAST_TOKENS),
    count=st.integers(2, 4),
    window=st.one_of(st.none(), st.integers(1, 30)),
    seed=st.integers(0, 99),
)
def test_each_share_gets_the_keys_that_it_sees_and_lacks(
    lengths: list[int], count: int, window: int | None, seed: int
) -> None:
    scored = np.random.default_rng(seed).random(sum(lengths)) > 0.5
    shares = divide(np.array(lengths, np.int32), scored, count, COST)
    assert [share.begin for share in shares] == [0, *(share.end for share in shares[:-1])]
    assert shares[-1].end == sum(lengths)
    document = np.repeat(np.arange(len(lengths)), lengths)
    moved = transfers(shares, window)
    for receiver, share in enumerate(shares):
        assert share.tokens == sum(share.lengths) >= LEAST_TOKENS
        assert list(share.lengths) == np.unique(document[share.begin : share.end], return_counts=True)[1].tolist()
        seen = {
            key
            for query in range(share.begin, share.end)
            for key in range(max(0, query - (window or query + 1) + 1), query)
            if document[key] == document[query]
        }
        got = [token for sender in range(count) for token in moved[sender][receiver]]
        assert got == sorted(seen - set(range(share.begin, share.end)))
        assert len(got) == share.before(window)
        for sender, owner in enumerate(shares):
            assert all(owner.begin <= token < owner.end for token in moved[sender][receiver])


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_work_is_divided_equally(count: int) -> None:
    """One long document: later tokens see more keys, so later shares have fewer tokens."""
    length = 4000
    shares = divide(np.array([length], np.int32), np.zeros(length, np.bool_), count, COST)
    seen = np.arange(length) + 1
    work = COST.token + COST.global_pair * seen + COST.sliding_pair * np.minimum(seen, COST.window)
    loads = [work[share.begin : share.end].sum() for share in shares]
    assert max(loads) - min(loads) <= 2 * work.max()
    sizes = [share.tokens for share in shares]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 1.5 * sizes[-1]


def test_scored_tokens_count_as_the_heads_work() -> None:
    scored = np.arange(1000) >= 900
    heavy = Cost(token=1.0, scored=9.0, sliding_pair=0.0, global_pair=0.0, window=5)
    first, _ = divide(np.array([1000], np.int32), scored, 2, heavy)
    assert abs(first.tokens - 905) <= 1

"""Ranks that share their passes compute the loss and the gradients of one process that has each pass to itself."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from support.context_cases import ContextCase, StepOutcome, context_step
from support.rank_pool import RankPool
from support.reference_step import LENGTHS

LOSS, GRADIENT = 1e-5, 1e-4
CASES = {
    "documents across borders": ContextCase(LENGTHS, max_length=64),
    "one row a pass": ContextCase(LENGTHS, max_length=64, micro=1),
    "one document, a window shorter than a share": ContextCase((122,)),
    "a window over several shares": ContextCase((103, 22, 40), window=70),
    "a window longer than the row": ContextCase((122,), window=200),
    "fewer tokens than the ranks need": ContextCase((3, 2)),
    "shares in which nothing is scored": ContextCase((90, 30), only_last=True),
    "blocks": ContextCase((103, 22, 40), kernel="blocks"),
    "blocks, a window over several shares": ContextCase((103, 22, 40), window=70, kernel="blocks"),
    "everything recomputed": ContextCase((103, 22, 40), recompute="full"),
    "norms recomputed": ContextCase((103, 22, 40), recompute="selective"),
    "compiled": ContextCase((103, 22, 40, 64, 64, 5), max_length=103, micro=1, compiled=True),
    "compiled, everything recomputed": ContextCase(
        (103, 22, 64, 64), max_length=103, micro=1, compiled=True, recompute="full"
    ),
    "norms recomputed, blocks": ContextCase((103, 22, 40), recompute="selective", kernel="blocks"),
}


@pytest.fixture(scope="module")
def two() -> Iterator[RankPool]:
    with RankPool(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def four() -> Iterator[RankPool]:
    with RankPool(4) as pool:
        yield pool


def check(outcomes: list[StepOutcome], expected: StepOutcome) -> None:
    for outcome in outcomes:
        assert outcome.loss == pytest.approx(expected.loss, abs=LOSS)
        assert outcome.evaluation == pytest.approx(expected.loss, abs=LOSS)
        for name, gradient in expected.gradients.items():
            away = np.linalg.norm(outcome.gradients[name] - gradient)
            assert away <= GRADIENT * np.linalg.norm(gradient), name


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_share_a_pass(two: RankPool, name: str) -> None:
    outcomes = two.run(context_step, CASES[name], 2)
    check(outcomes, context_step(CASES[name], 1))
    assert sum(outcome.tokens for outcome in outcomes) >= sum(CASES[name].lengths)
    assert max(outcome.tokens for outcome in outcomes) < sum(CASES[name].lengths)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("context", [2, 4])
@pytest.mark.parametrize("name", CASES)
def test_four_ranks_in_one_group_and_in_two(four: RankPool, name: str, context: int) -> None:
    check(four.run(context_step, CASES[name], context), context_step(CASES[name], 1))

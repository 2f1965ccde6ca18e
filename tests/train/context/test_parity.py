"""Ranks that share their passes compute the loss and the gradients of one process that has each pass to itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from gemfleet.train.planning import Sharing, Workload, shape_of_config
from gemfleet.train.planning.context import exchanged_bytes
from support.context_cases import ContextCase, StepOutcome, context_step, pass_bytes
from support.rank_pool import RankPool
from support.reference_step import LENGTHS, LORA
from support.strategy_cases import STRATEGIES
from support.tiny_model import save_tiny_gemma3, tiny_config

LOSS, GRADIENT = 1e-5, 1e-4
DIVIDED = [name for name in STRATEGIES if name != "ddp"]
CASES = {
    "documents across borders": ContextCase(LENGTHS, max_length=64),
    "one row a pass": ContextCase(LENGTHS, max_length=64, micro=1),
    "one group with fewer passes than another": ContextCase((40, 38, 40), max_length=40, micro=1),
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

UNDER_EVERY_STRATEGY = (
    "documents across borders",
    "one group with fewer passes than another",
    "one document, a window shorter than a share",
    "a window over several shares",
    "a window longer than the row",
    "fewer tokens than the ranks need",
    "everything recomputed",
)
Bases = Callable[[ContextCase], str]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """The folder of the base of a case."""
    folder, saved = tmp_path_factory.mktemp("bases"), dict[int, str]()

    def base_of(case: ContextCase) -> str:
        if case.window not in saved:
            saved[case.window] = str(save_tiny_gemma3(folder / f"window-{case.window}", window=case.window))
        return saved[case.window]

    return base_of


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
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name == "compiled" else ()) for name in CASES]
)
def test_two_ranks_share_a_pass(two: RankPool, bases: Bases, name: str) -> None:
    case = CASES[name]
    outcomes = two.run(context_step, case, 2, bases(case))
    check(outcomes, context_step(case, 1, bases(case)))
    assert sum(outcome.tokens for outcome in outcomes) >= sum(case.lengths)
    assert max(outcome.tokens for outcome in outcomes) < sum(case.lengths)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", DIVIDED)
def test_two_ranks_share_a_pass_under_every_strategy(two: RankPool, bases: Bases, strategy: str) -> None:
    case = CASES["documents across borders"]
    outcomes = two.run(context_step, case, 2, bases(case), strategy)
    check(outcomes, context_step(case, 1, bases(case)))


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["off", "full", "selective"])
def test_the_bytes_on_the_wire_are_those_of_the_plan(two: RankPool, bases: Bases, recompute: Any) -> None:
    case = ContextCase((600,), window=40, max_length=600, recompute=recompute)
    shape = shape_of_config(tiny_config(window=40).to_dict(), "tiny")
    work = Workload(length=600, supervised=0.5, lora_rank=LORA.r, dtype="fp32")
    planned = exchanged_bytes(shape, work, Sharing("ddp", recompute, context=2))
    outcomes = two.run(context_step, case, 2, bases(case))
    assert sum(outcome.wire for outcome in outcomes) == pytest.approx(planned, rel=0.05)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("context", [2, 4])
@pytest.mark.parametrize("name", CASES)
def test_four_ranks_in_one_group_and_in_two(four: RankPool, bases: Bases, name: str, context: int) -> None:
    case = CASES[name]
    check(four.run(context_step, case, context, bases(case)), context_step(case, 1, bases(case)))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("context", [2, 4])
@pytest.mark.parametrize("strategy", DIVIDED)
def test_four_ranks_share_passes_under_every_strategy(
    four: RankPool, bases: Bases, strategy: str, context: int
) -> None:
    """Of two groups, one may have fewer passes than the other, or none."""
    for name in UNDER_EVERY_STRATEGY:
        case = CASES[name]
        outcomes = four.run(context_step, case, context, bases(case), strategy)
        try:
            check(outcomes, context_step(case, 1, bases(case)))
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


@pytest.mark.slow
@pytest.mark.long
def test_four_ranks_at_16k_tokens_each_take_at_most_40_percent_of_one_ranks_activations() -> None:
    with RankPool(1) as alone:
        (whole,) = alone.run(pass_bytes, 16384, 1)
    with RankPool(4) as fresh:
        shares = fresh.run(pass_bytes, 16384, 4)
    print(f"one rank {whole / 2**20:.0f} MiB; four {[round(share / 2**20) for share in shares]}")
    assert max(shares) <= 0.4 * whole

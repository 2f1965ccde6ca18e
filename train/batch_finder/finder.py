"""The search: it finds the largest size that fits under each variant, then the fastest of all sizes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..device.out_of_memory import remedy
from ..errors import UserError
from .choice import Candidate, choose, fastest_pass
from .probes.trial import RankMeasure, Trial
from .variant_search import Group, SearchLimits, VariantSearch

ALIKE = 1.02  # the free memory of devices of one kind differs by up to this factor


@dataclass(frozen=True)
class Variant:
    """A way to train that the search tries: a name for people, and the fields of `TrainConfig` that it sets.

    if_limited: the variant that this one saves memory of, and is slower than; this one is tried only if memory limits
    that one
    """

    name: str
    changes: tuple[tuple[str, Any], ...] = ()
    if_limited: str | None = None


@dataclass(frozen=True)
class Found:
    """The chosen size, and everything that was measured on the way.

    evaluation_rows: the most rows with which an evaluation fitted, under the chosen variant; 0: no evaluation
    tightest:        the rank with the least memory, which decides for all; None if all have as much
    memory_trials:   for each variant, the number of trials that looked for the largest size
    cut_short:       whether the search ended early because its time was used up
    """

    choice: Candidate
    candidates: tuple[Candidate, ...]
    evaluation_rows: int
    tightest: RankMeasure | None
    memory_trials: dict[str, int]
    trials: int
    cut_short: bool = False


Tell = Callable[[str, Trial], None]
OpenGroup = Callable[[Variant], AbstractContextManager[Group]]


def find_batch(
    variants: Sequence[Variant],
    open_group: OpenGroup,
    limits: SearchLimits,
    tokens_per_row: int,
    tell: Tell,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """Tries every variant and chooses by measured speed. Raises UserError if no variant fits with one row.

    tell: called with each finished trial and its variant's name; tokens_per_row: of a full row, over all ranks
    """
    ends = clock() + limits.budget_s
    searches: dict[str, VariantSearch] = {}
    candidates: list[Candidate] = []
    evaluation: dict[str, int] = {}
    limited: set[str] = set()
    for variant in variants:
        if variant.if_limited is not None and variant.if_limited not in limited:
            continue
        if candidates and clock() >= ends:
            break
        with open_group(variant) as group:
            search = searches[variant.name] = VariantSearch(
                group, limits, partial(tell, variant.name), lambda: clock() >= ends
            )
            sizes = search.run()
            evaluation[variant.name] = search.evaluation_fit() if limits.evaluates and sizes else 0
        if search.memory_limits:
            limited.add(variant.name)
        if evaluation[variant.name] or not limits.evaluates:
            candidates += [_candidate(variant.name, search.trials, rows, tokens_per_row) for rows in sizes]
    trials = [trial for search in searches.values() for trial in search.trials]
    if not candidates:
        raise _nothing_fits(trials)
    choice = choose(candidates)
    return Found(
        choice,
        tuple(candidates),
        evaluation[choice.variant],
        _tightest(trials),
        {name: len(search.verdicts) for name, search in searches.items()},
        len(trials) + sum(search.evaluation_trials for search in searches.values()),
        clock() >= ends,
    )


def _candidate(variant: str, trials: Sequence[Trial], rows: int, tokens_per_row: int) -> Candidate:
    measured = [trial for trial in trials if trial.rows == rows and trial.fits]
    peak = max(rank.peak_bytes for trial in measured for rank in trial.ranks)
    return Candidate(variant, rows, rows * tokens_per_row / fastest_pass(measured, rows), peak)


def _tightest(trials: Sequence[Trial]) -> RankMeasure | None:
    """The rank that may use the least memory, by the first measurement; None if all may use as much."""
    ranks = next((trial.ranks for trial in trials if trial.ranks), ())
    least = min(ranks, key=lambda rank: rank.usable_bytes, default=None)
    alike = least is None or all(rank.usable_bytes < ALIKE * least.usable_bytes for rank in ranks)
    return None if alike else least


def _nothing_fits(trials: Sequence[Trial]) -> UserError:
    refused = [trial for trial in trials if trial.rows == 1 and not trial.fits]
    if not refused:
        return UserError(f"training fits, but not the evaluation of one row; {remedy(1)}")
    rank = None if refused[0].message else refused[0].tightest
    detail = refused[0].message
    if rank is not None:
        detail = f"rank {rank.rank} on {rank.node} needs {rank.peak_bytes} bytes of {rank.usable_bytes}"
    return UserError(f"not one row of train.data.max_length tokens fits ({detail}); {remedy(1)}")

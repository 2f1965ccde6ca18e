"""The search: for each variant the largest size that fits, then the fastest of all that do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from ..errors import UserError
from ..out_of_memory import remedy
from .choice import Candidate, choose, fastest_pass, rows_within, sizes_to_time, useful_rows
from .search import largest_fit, next_rows
from .trial import Failure, Trial

REPEATS_AFTER_LOSS = 1  # a process may be lost for reasons that say nothing about the size


@dataclass(frozen=True)
class Variant:
    """One way to train that is tried: a name for people, and the fields of `TrainConfig` that it sets.

    only_for_memory: slower but smaller, so worth a try only where memory limited the variants before it
    """

    name: str
    changes: tuple[tuple[str, Any], ...] = ()
    only_for_memory: bool = False


@dataclass(frozen=True)
class SearchLimits:
    """largest_rows: the most rows any rank has in a step; timeout_s: the bound of one trial."""

    largest_rows: int
    timeout_s: float


@dataclass(frozen=True)
class Found:
    """The chosen size, and everything that was measured on the way."""

    choice: Candidate
    candidates: tuple[Candidate, ...]
    memory_trials: int
    trials: int


class Group(Protocol):
    """What tries a size on all ranks of one variant."""

    def try_rows(self, rows: int) -> Trial: ...


Tell = Callable[[str, Trial], None]
OpenGroup = Callable[[Variant], AbstractContextManager[Group]]


class ProbeError(RuntimeError):
    """Probes failed for another reason than memory, twice."""


def find_batch(
    variants: Sequence[Variant], open_group: OpenGroup, limits: SearchLimits, tokens_per_row: int, tell: Tell
) -> Found:
    """Try every variant, choose by measured speed. `tell` gets each trial as it ends, with its variant's name.

    tokens_per_row: supervised tokens of a full row, over all ranks. UserError when not one row fits anywhere.
    """
    candidates: list[Candidate] = []
    memory_trials = all_trials = 0
    refused: list[Trial] = []
    memory_limits = True
    for variant in variants:
        if variant.only_for_memory and not memory_limits:
            continue
        with open_group(variant) as group:
            search = VariantSearch(group, limits, partial(tell, variant.name))
            sizes = search.run()
        memory_limits = search.memory_limits
        memory_trials, all_trials = memory_trials + search.memory_trials, all_trials + len(search.trials)
        refused += [trial for trial in search.trials if trial.rows == 1 and not trial.fits]
        candidates += [_candidate(variant.name, search.trials, rows, tokens_per_row) for rows in sizes]
    if not candidates:
        detail = refused[0].message or _tightest_sentence(refused[0])
        raise UserError(f"not one row of train.data.max_length tokens fits ({detail}); {remedy(1)}")
    return Found(choose(candidates), tuple(candidates), memory_trials, all_trials)


class VariantSearch:
    """Memory first, then speed, on one group."""

    def __init__(self, group: Group, limits: SearchLimits, tell: Callable[[Trial], None]) -> None:
        self._group, self._limits, self._tell = group, limits, tell
        self.trials: list[Trial] = []
        self.memory_trials = 0

    def run(self) -> list[int]:
        """The sizes that fit and were timed twice; all measurements are in `trials`."""
        while (rows := next_rows(self._verdicts(), self._ceiling())) is not None:
            self.memory_trials += 1
            self._try(rows)
        sizes = sizes_to_time(largest_fit(self._verdicts())) if largest_fit(self._verdicts()) else []
        lost = {rows for rows in sizes if not self._try(rows).fits}
        for rows in sizes:
            if rows not in lost and len(self._of(rows)) < 2:
                self._try(rows)
        return [rows for rows in sizes if rows not in lost]

    @property
    def memory_limits(self) -> bool:
        """Whether a larger size would be worth a try if it fitted."""
        return largest_fit(self._verdicts()) < self._ceiling()

    def _ceiling(self) -> int:
        """No size is tried that no step has rows for, that cannot be faster, or that takes too long for a trial."""
        seconds = {trial.rows: trial.seconds for trial in self.trials[:2] if trial.fits}
        if len(seconds) < 2:
            return self._limits.largest_rows
        # Two passes a trial, and half of the bound is left for what cannot be foreseen.
        in_time = rows_within(seconds, self._limits.timeout_s / 4)
        return max(2, min(self._limits.largest_rows, useful_rows(seconds), in_time))

    def _verdicts(self) -> list[Trial]:
        return self.trials[: self.memory_trials]

    def _of(self, rows: int) -> list[Trial]:
        return [trial for trial in self.trials if trial.rows == rows]

    def _try(self, rows: int) -> Trial:
        """One trial, repeated when a process was lost: only a second loss counts against the size."""
        for _ in range(REPEATS_AFTER_LOSS + 1):
            trial = self._group.try_rows(rows)
            self._tell(trial)
            if trial.failure in (None, Failure.MEMORY, Failure.USER):
                break
        if trial.failure is Failure.USER:
            raise UserError(trial.message)
        if trial.failure is Failure.ERROR:
            raise ProbeError(trial.message)
        self.trials.append(trial)
        return trial


def _candidate(variant: str, trials: Sequence[Trial], rows: int, tokens_per_row: int) -> Candidate:
    measured = [trial for trial in trials if trial.rows == rows and trial.fits]
    peak = max(rank.peak_bytes for trial in measured for rank in trial.ranks)
    return Candidate(variant, rows, rows * tokens_per_row / fastest_pass(measured, rows), peak)


def _tightest_sentence(trial: Trial) -> str:
    rank = trial.tightest
    return f"rank {rank.rank} on {rank.node} needs {rank.peak_bytes} bytes of {rank.usable_bytes}"

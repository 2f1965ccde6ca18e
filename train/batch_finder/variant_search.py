"""The search under one variant: first memory, then speed, then the evaluation's memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..errors import UserError
from .choice import fastest_pass, rows_within, sizes_to_time, useful_rows
from .probes.trial import Failure, Trial
from .search import largest_fit, next_rows

REPEATS_AFTER_LOSS = 1  # the loss of a process may have nothing to do with the size
TIMINGS = 2  # of each size; the faster one counts, as a disturbance rarely hits both


@dataclass(frozen=True)
class SearchLimits:
    """The limits of a search.

    largest_rows: the most rows that a rank has in a step; timeout_s: the time limit of one trial
    evaluates: whether the run scores an evaluation set; evaluation_rows: rows of its passes, None: as in training
    budget_s: after so many seconds, nothing is timed any more
    """

    largest_rows: int
    timeout_s: float
    evaluates: bool = False
    evaluation_rows: int | None = None
    budget_s: float = math.inf


class Group(Protocol):
    """Tries a size on all ranks, under one variant."""

    def try_rows(self, rows: int, evaluation: bool = False) -> Trial: ...


class ProbeError(RuntimeError):
    """Probes failed twice, for another reason than memory."""


class NoRankThereError(ProbeError):
    """No rank of the search computes on the kind of GPUs that it is about."""


class VariantSearch:
    """All trials of one variant, on its group. verdicts: the trials that looked for the largest size"""

    def __init__(
        self,
        group: Group,
        limits: SearchLimits,
        tell: Callable[[Trial], None],
        is_over: Callable[[], bool] = lambda: False,
    ) -> None:
        """is_over: whether the time for timings is used up; the search still looks for the largest size"""
        self._group, self._limits, self._tell, self._is_over = group, limits, tell, is_over
        self.trials: list[Trial] = []
        self.verdicts: list[Trial] = []
        self.evaluation_trials = 0

    def run(self) -> list[int]:
        """The sizes that fit and were timed, twice if the time allowed. All measurements are in `trials`."""
        while (rows := next_rows(self.verdicts, self._ceiling())) is not None:
            self.verdicts.append(self._keep(rows))
            if rows == 2 and self.largest == 2:  # the seconds of one row and of two decide how far to go
                self._keep(2)
                self._keep(1)
        sizes = sizes_to_time(self.largest) if self.largest else []
        for _ in range(TIMINGS):
            for rows in sizes:
                if self._fits(rows) and len(self._of(rows)) < TIMINGS and not self._is_over():
                    self._keep(rows)
        return [rows for rows in sizes if self._of(rows) and self._fits(rows)]

    def evaluation_fit(self) -> int:
        """The largest size with which an evaluation fitted; 0 if one row did not fit.

        It tries the size that was asked for, or training's largest, then half of it, and so on. Smaller sizes fit too.
        """
        rows = max(self._limits.evaluation_rows or 0, self.largest)
        while rows:
            self.evaluation_trials += 1
            if self._try(rows, evaluation=True).fits:
                break
            rows //= 2
        return rows

    @property
    def largest(self) -> int:
        """The most rows that fit in a pass of training; 0 if one row does not fit."""
        return largest_fit(self.verdicts)

    @property
    def memory_limits(self) -> bool:
        """Whether memory alone forbids a larger size that would be worth a try."""
        return self.largest < self._ceiling()

    def _ceiling(self) -> int:
        """The largest size to try: a step has rows for it, it can be faster, and its trial ends in time."""
        if not (self._of(1) and self._of(2) and self._fits(1) and self._fits(2)):
            return self._limits.largest_rows
        seconds = {rows: fastest_pass(self.trials, rows) for rows in (1, 2)}
        # A trial has two passes, and half of the time is kept for surprises.
        in_time = rows_within(seconds, self._limits.timeout_s / 4)
        return max(2, min(self._limits.largest_rows, useful_rows(seconds), in_time))

    def _of(self, rows: int) -> list[Trial]:
        return [trial for trial in self.trials if trial.rows == rows]

    def _fits(self, rows: int) -> bool:
        return all(trial.fits for trial in self._of(rows))

    def _keep(self, rows: int) -> Trial:
        trial = self._try(rows)
        self.trials.append(trial)
        return trial

    def _try(self, rows: int, evaluation: bool = False) -> Trial:
        """One trial. If a process is lost, it is repeated: only a second loss counts against the size."""
        for _ in range(REPEATS_AFTER_LOSS + 1):
            trial = self._group.try_rows(rows, evaluation)
            self._tell(trial)
            if trial.failure in (None, Failure.MEMORY, Failure.USER, Failure.ABSENT):
                break
        if trial.failure is Failure.USER:
            raise UserError(trial.message)
        if trial.failure is Failure.ERROR:
            raise ProbeError(trial.message)
        if trial.failure is Failure.ABSENT:
            raise NoRankThereError(trial.message)
        return trial

"""The search under one variant: memory first, then speed, then whether the evaluation has room."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..errors import UserError
from .choice import fastest_pass, rows_within, sizes_to_time, useful_rows
from .probes.trial import Failure, Trial
from .search import largest_fit, next_rows

REPEATS_AFTER_LOSS = 1  # a process may be lost for reasons that say nothing about the size
TIMINGS = 2  # of each size: what disturbs one is unlikely to disturb the other, and the faster counts


@dataclass(frozen=True)
class SearchLimits:
    """What bounds a search.

    largest_rows: the most rows any rank has in a step; timeout_s: the bound of one trial
    evaluates: whether the run scores an evaluation set; evaluation_rows: in passes of so many rows, None: as it trains
    budget_s: after so long nothing is tried any more that could only be faster
    """

    largest_rows: int
    timeout_s: float
    evaluates: bool = False
    evaluation_rows: int | None = None
    budget_s: float = math.inf


class Group(Protocol):
    """What tries a size on all ranks of one variant."""

    def try_rows(self, rows: int, evaluation: bool = False) -> Trial: ...


class ProbeError(RuntimeError):
    """Probes failed for another reason than memory, twice."""


class VariantSearch:
    """All trials of one variant, on its group. `verdicts` are those that looked for the largest size."""

    def __init__(
        self,
        group: Group,
        limits: SearchLimits,
        tell: Callable[[Trial], None],
        is_over: Callable[[], bool] = lambda: False,
    ) -> None:
        """is_over: whether the time for timings has been used up; the largest size is looked for all the same."""
        self._group, self._limits, self._tell, self._is_over = group, limits, tell, is_over
        self.trials: list[Trial] = []
        self.verdicts: list[Trial] = []
        self.evaluation_trials = 0

    def run(self) -> list[int]:
        """The sizes that fit and were timed, twice if there was time; all measurements are in `trials`."""
        while (rows := next_rows(self.verdicts, self._ceiling())) is not None:
            self.verdicts.append(self._keep(rows))
            if rows == 2 and self.largest == 2:  # how far to go on rests on the seconds of one row and of two
                self._keep(2)
                self._keep(1)
        sizes = sizes_to_time(self.largest) if self.largest else []
        for _ in range(TIMINGS):
            for rows in sizes:
                if self._fits(rows) and len(self._of(rows)) < TIMINGS and not self._is_over():
                    self._keep(rows)
        return [rows for rows in sizes if self._of(rows) and self._fits(rows)]

    def evaluation_fit(self) -> int:
        """The largest size tried in which an evaluation fits: what was asked for or training's largest, else halves of
        it; 0 when not even one row does. An evaluation of fewer rows fits, too."""
        rows = max(self._limits.evaluation_rows or 0, self.largest)
        while rows:
            self.evaluation_trials += 1
            if self._try(rows, evaluation=True).fits:
                break
            rows //= 2
        return rows

    @property
    def largest(self) -> int:
        """The most rows that fit in a pass of training; 0: not one."""
        return largest_fit(self.verdicts)

    @property
    def memory_limits(self) -> bool:
        """Whether a larger size would be worth a try if it fitted."""
        return self.largest < self._ceiling()

    def _ceiling(self) -> int:
        """No size is tried that no step has rows for, that cannot be faster, or that takes too long for a trial."""
        if not (self._of(1) and self._of(2) and self._fits(1) and self._fits(2)):
            return self._limits.largest_rows
        seconds = {rows: fastest_pass(self.trials, rows) for rows in (1, 2)}
        # Two passes a trial, and half of the bound is left for what cannot be foreseen.
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
        """One trial, repeated when a process was lost: only a second loss counts against the size."""
        for _ in range(REPEATS_AFTER_LOSS + 1):
            trial = self._group.try_rows(rows, evaluation)
            self._tell(trial)
            if trial.failure in (None, Failure.MEMORY, Failure.USER):
                break
        if trial.failure is Failure.USER:
            raise UserError(trial.message)
        if trial.failure is Failure.ERROR:
            raise ProbeError(trial.message)
        return trial

"""A probe group has one process for each rank. They load the model once, and a failure ends them all.

Every wait has a time limit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

from .child import ProbeTask
from .process import Answer, ProbeHandle
from .trial import Failure, RankMeasure, Trial

POLL_SECONDS = 0.05
GRACE_SECONDS = 2.0  # after the first failure, for another rank that is about to say that its memory ran out
LOADING_FACTOR = 10  # loading may take so many times the limit, while all ranks give signs of life
RANK_ORDER = tuple(Failure)


@dataclass(frozen=True)
class GroupSettings:
    """margin: share of the memory limit to keep free; timeout_s: of a trial, and of a rank's silence

    gpu: the driver's name of the GPUs on which a size is tried, while the other ranks hold one row; empty: on all ranks
    """

    margin: float
    timeout_s: float
    gpu: str = ""


class ProbeGroup:
    """Tries sizes on all ranks at once. A context manager, which leaves no process behind."""

    def __init__(self, handles: Sequence[ProbeHandle], tasks: Sequence[ProbeTask], settings: GroupSettings) -> None:
        """`tasks[i]` is for `handles[i]`. A free address replaces their `address`."""
        self._handles, self._tasks, self._settings = handles, tasks, settings
        self._limits: list[int] | None = None
        self._asked: list[bool] = []  # of each rank, whether it tries the sizes

    def __enter__(self) -> ProbeGroup:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for handle in self._handles:
            handle.kill()
        self._limits = None

    def try_rows(self, rows: int, evaluation: bool = False) -> Trial:
        """The verdict of all ranks that try sizes. Starts the processes if none run. A failure ends them all."""
        try:
            if self._limits is None:
                self._start()
            for handle, asked in zip(self._handles, self._asked, strict=True):
                handle.send(rows if asked else 1, evaluation)
            answers = self._wait("measured", self._settings.timeout_s)
        except GroupFailure as failed:
            self.close()
            return Trial(rows, (), failed.failure, failed.message, evaluation)
        except BaseException:
            self.close()
            raise
        assert self._limits is not None
        usable = [int(limit * (1 - self._settings.margin)) for limit in self._limits]
        measures = [
            RankMeasure(task.rank, handle.node, answer["peak_bytes"], limit, answer["seconds"])
            for task, handle, answer, limit in zip(self._tasks, self._handles, answers, usable, strict=True)
        ]
        return Trial(rows, tuple(compress(measures, self._asked)), evaluation=evaluation)

    def _start(self) -> None:
        address = self._handles[0].free_address()
        for handle, task in zip(self._handles, self._tasks, strict=True):
            handle.start(replace(task, address=address))
        ready, gpu = self._wait("ready", LOADING_FACTOR * self._settings.timeout_s), self._settings.gpu
        self._asked = [not gpu or answer["device"] == gpu for answer in ready]
        if not any(self._asked):
            raise GroupFailure(Failure.ABSENT, f"no rank of this search is on a {gpu}")
        self._limits = [answer["limit_bytes"] for answer in ready]

    def _wait(self, kind: str, bound_s: float) -> list[Answer]:
        """Every rank's answer of that kind. Raises GroupFailure, with the worst verdict, if one does not give it."""
        watch = Watch(len(self._handles), kind, bound_s, self._settings.timeout_s)
        while not watch.settled():
            for index, handle in enumerate(self._handles):
                watch.take(index, handle.poll())
            time.sleep(POLL_SECONDS)
        return watch.result([f"rank {t.rank} on {h.node}" for t, h in zip(self._tasks, self._handles, strict=True)])


class GroupFailure(Exception):  # noqa: N818
    """A trial ended without a measurement."""

    def __init__(self, failure: Failure, message: str) -> None:
        super().__init__(failure, message)
        self.failure, self.message = failure, message


class Watch:
    """The answers of each rank during a wait for all: a small state machine over answers and a clock."""

    def __init__(
        self, ranks: int, kind: str, bound_s: float, silence_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._kind, self._silence_s, self._clock = kind, silence_s, clock
        self._deadline = clock() + bound_s
        self._heard = [clock()] * ranks
        self._answers: list[Answer | None] = [None] * ranks
        self._failures: dict[int, tuple[Failure, str]] = {}
        self._grace_ends = float("inf")

    def take(self, rank: int, answers: Sequence[Answer]) -> None:
        for answer in answers:
            self._heard[rank] = self._clock()
            if answer["kind"] == self._kind:
                self._answers[rank] = answer
            elif answer["kind"] == "failed":
                self._fail(rank, Failure(answer["cause"]), answer["message"])
            elif answer["kind"] == "exited":
                self._fail(rank, Failure.DIED, answer["message"])

    def settled(self) -> bool:
        """Whether the wait is over: all have answered, one has failed, or the time is up."""
        now = self._clock()
        if self._failures:
            told = any(cause is Failure.MEMORY for cause, _ in self._failures.values())
            return told or now >= self._grace_ends or len(self._failures) == len(self._heard)
        waited_for = [rank for rank, answer in enumerate(self._answers) if answer is None]
        for rank in waited_for:
            quiet = now - self._heard[rank]
            if now >= self._deadline or quiet >= self._silence_s:
                self._fail(rank, Failure.SILENT, f"no answer in time, and no sign of life for {quiet:.0f} s")
        return not waited_for or bool(self._failures)

    def result(self, names: Sequence[str]) -> list[Any]:
        """Every rank's answer. Raises GroupFailure, with the most telling failure, if one has failed."""
        if self._failures:
            rank = min(self._failures, key=lambda r: (RANK_ORDER.index(self._failures[r][0]), self._heard[r]))
            cause, message = self._failures[rank]
            raise GroupFailure(cause, f"{names[rank]}: {message}")
        return list(self._answers)

    def _fail(self, rank: int, cause: Failure, message: str) -> None:
        """Records a rank's first failure; its exit only follows from it. The others then get little time."""
        if rank not in self._failures and self._answers[rank] is None:
            self._failures[rank] = (cause, message)
            self._grace_ends = min(self._grace_ends, self._clock() + GRACE_SECONDS)

"""Fetches the next step's rows while the current step is computed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from ..interfaces import BlockSource, Shares, StepRows


class StepPrefetcher:
    """Iterates (step index, this rank's rows) from `first` to `last`. A thread fetches one step ahead.

    `last_wait_seconds`: how long the loop waited for the rows it has just got
    """

    def __init__(
        self,
        source: BlockSource,
        rank: int,
        first: int,
        last: int,
        shares: Callable[[int], Shares | None] = lambda step: None,
    ) -> None:
        """shares: those of a step, by its index. It is asked once a step, when the step before begins."""
        self._source, self._rank, self._shares = source, rank, shares
        self._first, self._last = first, last
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self.last_wait_seconds = 0.0

    def __enter__(self) -> StepPrefetcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[tuple[int, StepRows]]:
        ahead = self._fetch(self._first)
        for index in range(self._first, self._last):
            started = time.perf_counter()
            rows = ahead.result()
            self.last_wait_seconds = time.perf_counter() - started
            if index + 1 < self._last:
                ahead = self._fetch(index + 1)
            yield index, rows

    def _fetch(self, index: int) -> Future[StepRows]:
        epoch, step_in_epoch = divmod(index, self._source.steps_per_epoch)
        return self._pool.submit(self._source.step, epoch, step_in_epoch, self._rank, self._shares(index))

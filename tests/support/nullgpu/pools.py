"""Groups of ranks on pretended GPUs, one up at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from support.nullgpu.device import PretendedGpu
from support.nullgpu.ranks import pretended_rank, real_ranks
from support.rank_pool import RankPool


class Pools:
    """The one group of ranks that is up; started anew where another is asked for, or after a failure."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._key: object = None
        self._pool: RankPool | None = None

    def alone(self, world_size: int, gpu: PretendedGpu | None = None) -> RankPool:
        """One process that is rank 0 among so many."""
        return self._get((world_size, gpu), lambda: pretended_rank(world_size, gpu))

    def real(self, size: int) -> RankPool:
        """So many processes that talk to each other."""
        return self._get(("real", size), lambda: real_ranks(size))

    def _get(self, key: object, make: Callable[[], RankPool]) -> RankPool:
        if self._pool is None or self._key != key or not self._pool.is_alive():
            self._stack.close()
            self._key, self._pool = key, self._stack.enter_context(make())
        return self._pool

"""What communication costs a rank: seconds it waits for collectives, and bytes they put on the wire.

Seconds are those spent in `Work.wait`, which on gloo blocks until the collective is done: what computation did not
hide. On NCCL it only orders streams, so on CUDA they say nothing. Bytes are counted from the collectives that one step
issues, by the traffic of a ring: an all-reduce of S bytes sends 2 (n - 1) / n S from each of n ranks; a gather, a
reduce-scatter, a broadcast or a reduce (n - 1) / n S.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class WaitClock:
    """Seconds that this process has waited for collectives since the clock was read last."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def read(self) -> float:
        seconds, self.seconds = self.seconds, 0.0
        return seconds


@contextmanager
def timed_waits() -> Iterator[WaitClock]:
    """Times every wait for a collective inside the context."""
    clock, wait = WaitClock(), dist.Work.wait

    def timed(work: Any, *arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return wait(work, *arguments)
        finally:
            clock.seconds += time.perf_counter() - started

    dist.Work.wait = timed  # type: ignore[method-assign, assignment]
    try:
        yield clock
    finally:
        dist.Work.wait = wait  # type: ignore[method-assign]


class WireCounter(TorchDispatchMode):
    """Counts the bytes that this rank's collectives send while the mode is entered, by the collective's name."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.sent: Counter[str] = Counter()
        self._ranks = ranks

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "c10d":
            name = function.name().removeprefix("c10d::").partition(".")[0].strip("_")
            self.sent[name] += sent_bytes(name, largest_argument(args), self._ranks)
        return function(*args, **(kwargs or {}))


def largest_argument(arguments: Any) -> int:
    """Bytes of the larger side of a collective: all its outputs together, or all its inputs."""
    sides = [sum(_bytes(leaf) for leaf in tree_leaves(argument)) for argument in arguments]
    return max(sides, default=0)


def sent_bytes(name: str, size: int, ranks: int) -> int:
    """What one rank of a ring sends for a collective over `size` bytes."""
    if name in ("barrier", "monitored_barrier"):
        return 0
    times = 2 if name.startswith("allreduce") else 1
    return round(times * size * (ranks - 1) / ranks)


def _bytes(leaf: Any) -> int:
    return leaf.numel() * leaf.element_size() if isinstance(leaf, torch.Tensor) else 0

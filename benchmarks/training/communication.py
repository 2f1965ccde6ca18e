"""What communication costs a rank: seconds it waits for collectives, and bytes they put on the wire.

Seconds are those spent in `Work.wait`, which on gloo blocks until the collective is done: what computation did not
hide. On NCCL it only orders streams, so on CUDA they say nothing. Bytes are counted from the collectives that one step
issues, by the traffic of a ring: an all-reduce of S bytes sends 2 (n - 1) / n S from each of n ranks; a gather, a
reduce-scatter, a broadcast or a reduce (n - 1) / n S.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@contextmanager
def timed_waits() -> Iterator[Callable[[], float]]:
    """Gives a function: the seconds that this process has waited for collectives since it was called last."""
    waited, wait = [0.0], dist.Work.wait

    def timed(work: Any, *arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return wait(work, *arguments)
        finally:
            waited[0] += time.perf_counter() - started

    def read() -> float:
        seconds, waited[0] = waited[0], 0.0
        return seconds

    with mock.patch.object(dist.Work, "wait", timed):
        yield read


class WireCounter(TorchDispatchMode):
    """Counts the bytes that this rank's collectives send while the mode is entered, by the collective's name."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.sent: Counter[str] = Counter()
        self._ranks = ranks

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "c10d":
            name = function.name().removeprefix("c10d::").partition(".")[0].strip("_")
            sides = [[leaf for leaf in tree_leaves(side) if isinstance(leaf, torch.Tensor)] for side in args]
            # The larger side: all its outputs together, or all its inputs.
            size = max((sum(tensor.numel() * tensor.element_size() for tensor in side) for side in sides), default=0)
            times = 0 if name.endswith("barrier") else 2 if name.startswith("allreduce") else 1
            self.sent[name] += round(times * size * (self._ranks - 1) / self._ranks)
        return function(*args, **(kwargs or {}))

"""The one honest throughput record: what was computed, what was useful, and how long it took.

Three counts, never mixed: raw tokens (everything that went through the model, padding too), non-pad tokens (text), and
supervised tokens (what the loss scored). Rates are over all ranks and per rank, on wall time of the whole step:
waiting for data, accumulation, communication and the optimizer are all inside.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections import deque
from dataclasses import asdict, dataclass

import torch

RATE_WINDOW_STEPS = 20


@dataclass(frozen=True)
class StepThroughput:
    """Seconds and tokens of one optimizer step over all ranks."""

    step_seconds: float
    data_wait_seconds: float
    raw_tokens: int
    tokens: int
    supervised_tokens: int
    world_size: int
    peak_memory_bytes: int

    def record(self) -> dict[str, float]:
        """Flat record for logs, API and TensorBoard; rates in tokens per second."""
        per_second = {
            "raw_tokens_per_second": self.raw_tokens / self.step_seconds,
            "tokens_per_second": self.tokens / self.step_seconds,
            "supervised_tokens_per_second": self.supervised_tokens / self.step_seconds,
            "tokens_per_second_per_rank": self.tokens / self.step_seconds / self.world_size,
        }
        return {**asdict(self), **per_second}


class StepClock:
    """Times steps and remembers the last `RATE_WINDOW_STEPS` for a steady estimate of the time left."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=RATE_WINDOW_STEPS)
        self._start = 0.0

    def start(self) -> None:
        self._start = time.perf_counter()

    def stop(self) -> float:
        seconds = time.perf_counter() - self._start
        self._recent.append(seconds)
        return seconds

    def seconds_left(self, steps_left: int) -> float:
        return steps_left * statistics.median(self._recent) if self._recent else 0.0


def peak_memory_bytes() -> int:
    """Peak of this process: memory reserved on its GPU, or its resident set where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

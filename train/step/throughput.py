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

from ..config.schema import ActivationCheckpointing
from ..model.gemma import TrainableModel
from ..planning.devices import gpu_of_driver_name
from ..planning.flops import FlopCounter
from ..planning.shapes import shape_of_config

RATE_WINDOW_STEPS = 20


@dataclass(frozen=True)
class StepThroughput:
    """Seconds, tokens and FLOPs of one optimizer step over all ranks.

    checkpoint_wait_seconds: what saving held training up since the step before; it lies between steps, not in this one
    flops: what LoRA needs for these documents, recomputation and padding left out; recomputed_flops: what activation
    checkpointing adds; rated_flops_per_second: of one rank's device on its data sheet, None where there is none
    """

    step_seconds: float
    data_wait_seconds: float
    checkpoint_wait_seconds: float
    raw_tokens: int
    tokens: int
    supervised_tokens: int
    world_size: int
    peak_memory_bytes: int
    flops: float
    recomputed_flops: float
    rated_flops_per_second: float | None

    def record(self) -> dict[str, float | None]:
        """Flat record for logs, API and TensorBoard; rates in tokens per second."""
        per_second: dict[str, float | None] = {
            "raw_tokens_per_second": self.raw_tokens / self.step_seconds,
            "tokens_per_second": self.tokens / self.step_seconds,
            "supervised_tokens_per_second": self.supervised_tokens / self.step_seconds,
            "tokens_per_second_per_rank": self.tokens / self.step_seconds / self.world_size,
            "flops_per_second_per_rank": self.flops / self.step_seconds / self.world_size,
            "mfu": self._utilisation(self.flops),
            "hfu": self._utilisation(self.flops + self.recomputed_flops),
        }
        return {**asdict(self), **per_second}

    def _utilisation(self, flops: float) -> float | None:
        """The share of what the devices could compute in this time by their data sheets; None where they have none."""
        if self.rated_flops_per_second is None:
            return None
        return flops / (self.step_seconds * self.world_size * self.rated_flops_per_second)


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


def flop_counter(model: TrainableModel, checkpointing: ActivationCheckpointing) -> FlopCounter:
    """A counter for this model. It must be made before a strategy divides the adapters."""
    config = model.peft_model.config
    adapters = sum(parameter.numel() for parameter in model.adapter_parameters().values())
    return FlopCounter(shape_of_config(config.to_dict(), "model"), adapters, checkpointing)


def rated_flops_per_second(device: torch.device, dtype: torch.dtype) -> float | None:
    """The data sheet's peak at this precision; None for a CPU, an unknown GPU, or a precision that the sheet lacks."""
    if device.type != "cuda":
        return None
    sheet = gpu_of_driver_name(torch.cuda.get_device_name(device))
    if sheet is None or sheet.bf16 != (dtype == torch.bfloat16):
        return None
    return sheet.tflops * 1e12


def peak_memory_bytes() -> int:
    """The peak of this process: memory reserved on its GPU, or its resident set without a GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

"""Measures a step: its time, its FLOPs, its device's rated speed, and the peak of its memory."""

from __future__ import annotations

import math
import resource
import statistics
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from ..config.schema import ActivationCheckpointing
from ..model.gemma import TrainableModel
from ..planning.devices import gpu_of_driver_name
from ..planning.flops import FlopCounter
from ..planning.shapes import shape_of_config

RATE_WINDOW_STEPS = 20


class StepClock:
    """Times steps, and estimates the time left by the median of the last `RATE_WINDOW_STEPS`."""

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


class SpanTimer:
    """Times what a device does between each `start` and its `stop`, without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._spans: list[tuple[Any, Any]] = []
        self._start: Any = None

    def start(self) -> None:
        self._start = self._mark()

    def stop(self) -> None:
        self._spans.append((self._start, self._mark()))

    def take_seconds(self) -> float:
        """The sum of all spans since the last call. Waits until the device has come to their end."""
        spans, self._spans = self._spans, []
        if not self._on_gpu:
            return float(sum(end - start for start, end in spans))
        for _, end in spans:
            end.synchronize()
        return float(sum(start.elapsed_time(end) for start, end in spans)) / 1000

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


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


def sum_of(losses: Sequence[torch.Tensor]) -> float:
    """The sum of a device's scalars in fp64. It waits for the device once, however many there are."""
    return math.fsum(torch.stack(list(losses)).tolist()) if losses else 0.0


def peak_memory_bytes() -> int:
    """The peak of this process: memory reserved on its GPU, or its resident set without a GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

"""Computes what a run needs of its devices before anything is loaded: memory, speed, and the choice of a strategy.

Pure functions of a model's shape, a workload and a device. Every byte count of the decoder is derived from the code
that runs (transformers' Gemma 3, and `lora`, `attention` and `loss` of `train/kernels/`), and is tested against it.
"""

from __future__ import annotations

from .choice import Choice, choose_strategy
from .devices import GPUS, Device, cpu_device
from .memory import MemoryParts, memory_per_rank
from .options import Fleet, Sharing, Workload
from .shapes import SIZES, ModelShape, shape_of_config
from .speed import Speed, expected_speed

__all__ = [
    "GPUS",
    "SIZES",
    "Choice",
    "Device",
    "Fleet",
    "MemoryParts",
    "ModelShape",
    "Sharing",
    "Speed",
    "Workload",
    "choose_strategy",
    "cpu_device",
    "expected_speed",
    "memory_per_rank",
    "shape_of_config",
]

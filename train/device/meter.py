"""Reads how full and how busy each rank's device is, for the step record. Without a GPU, the process is the device.

On a GPU, memory includes what other processes hold, so it may exceed the rank's own peak. All ranks' figures go through
the step's one small reduction: each rank adds its figures at its own places in a row of zeros.
"""

from __future__ import annotations

import os
import time
from dataclasses import astuple, dataclass
from typing import Any, Protocol

import torch

from .memory import container_bytes, machine_bytes, resident_bytes

AT_MOST_EVERY_SECONDS = 1.0  # NVML takes about a millisecond, which would slow the steps of a small model
UNKNOWN = -1.0


@dataclass(frozen=True)
class DeviceLoad:
    """memory_bytes: in use now; memory_total_bytes: of the device, or of the node, whose ranks share it

    utilisation: 0 to 1, the share of time in which the GPU runs a kernel, or the used share of this rank's cores;
    `UNKNOWN` without NVML
    """

    memory_bytes: float
    memory_total_bytes: float
    utilisation: float


class Source(Protocol):
    """Reads a device's load."""

    def read(self) -> DeviceLoad: ...


class CpuSource:
    """Reads this process: its resident set, and the share of its threads' time that it computed since the last read."""

    def __init__(self) -> None:
        limits = (machine_bytes(), container_bytes())
        self._total = min(limit for limit in limits if limit is not None)
        self._wall, self._busy = time.perf_counter(), _cpu_seconds()

    def read(self) -> DeviceLoad:
        wall, busy = time.perf_counter(), _cpu_seconds()
        room = (wall - self._wall) * torch.get_num_threads()
        share = min(1.0, (busy - self._busy) / room) if room else 0.0
        self._wall, self._busy = wall, busy
        return DeviceLoad(resident_bytes(), self._total, share)


class CudaSource:
    """Reads the GPU through its driver and NVML. torch knows its number there, whatever CUDA_VISIBLE_DEVICES hides."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._has_nvml = True

    def read(self) -> DeviceLoad:
        free, total = torch.cuda.mem_get_info(self._device)
        return DeviceLoad(total - free, total, self._utilisation())

    def _utilisation(self) -> float:
        if self._has_nvml:
            try:
                return torch.cuda.utilization(self._device) / 100
            except Exception:  # no nvidia-ml-py, no permission, or a slice of a GPU, which lacks the counter
                self._has_nvml = False
        return UNKNOWN


class DeviceMeter:
    """Reads this rank's device at most once a second, and reports the loads of all ranks."""

    def __init__(self, source: Source, rank: int, world_size: int) -> None:
        self._source, self._rank, self._world_size = source, rank, world_size
        self._read_at = -AT_MOST_EVERY_SECONDS
        self._load = DeviceLoad(0, 0, UNKNOWN)

    @classmethod
    def of(cls, device: torch.device, rank: int, world_size: int) -> DeviceMeter:
        return cls(CudaSource(device) if device.type == "cuda" else CpuSource(), rank, world_size)

    def places(self) -> list[float]:
        """The summand of this rank for the reduction: three numbers for each rank, which are 0 for all others."""
        if time.perf_counter() - self._read_at >= AT_MOST_EVERY_SECONDS:
            self._load, self._read_at = self._source.read(), time.perf_counter()
        own = list(astuple(self._load))
        return [0.0] * (len(own) * self._rank) + own + [0.0] * (len(own) * (self._world_size - 1 - self._rank))

    @staticmethod
    def record(summed: list[float]) -> dict[str, Any]:
        """Lists with an entry for each rank, from the sum of all `places`; None for an unknown utilisation."""
        return {
            "memory_bytes": [int(value) for value in summed[0::3]],
            "memory_total_bytes": [int(value) for value in summed[1::3]],
            "utilisation": [None if value == UNKNOWN else round(value, 4) for value in summed[2::3]],
        }


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system

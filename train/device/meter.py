"""How full and how busy each rank's device is, for the step record: a GPU's memory, or a process's where there is none.

Memory is what the device holds now, other processes' share included on a GPU, so it may exceed the rank's own peak.
A rank's figures travel in the step's one small reduction: each adds them at its own places in a row of zeros.
"""

from __future__ import annotations

import os
import time
from dataclasses import astuple, dataclass
from typing import Any, Protocol

import torch

from .memory import container_bytes, machine_bytes, resident_bytes

AT_MOST_EVERY_SECONDS = 1.0  # NVML answers in about a millisecond, which steps of a small model would notice
UNKNOWN = -1.0


@dataclass(frozen=True)
class DeviceLoad:
    """memory_bytes: in use now; memory_total_bytes: of the device, or what this node's ranks share.

    utilisation: 0 to 1, of the GPU's time with a kernel on it, or of this rank's cores; `UNKNOWN` without NVML.
    """

    memory_bytes: float
    memory_total_bytes: float
    utilisation: float


class Source(Protocol):
    """Where a device's load is read."""

    def read(self) -> DeviceLoad: ...


class CpuSource:
    """This process: its resident set, and how much of its threads' time it computed since the last look."""

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
    """The GPU as its driver and NVML see it; torch finds its number there whatever CUDA_VISIBLE_DEVICES hides."""

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
            except Exception:  # no nvidia-ml-py, no permission, or a slice of a GPU, which has no such counter
                self._has_nvml = False
        return UNKNOWN


class DeviceMeter:
    """Reads this rank's device at most once a second and tells all ranks' loads."""

    def __init__(self, source: Source, rank: int, world_size: int) -> None:
        self._source, self._rank, self._world_size = source, rank, world_size
        self._read_at = -AT_MOST_EVERY_SECONDS
        self._load = DeviceLoad(0, 0, UNKNOWN)

    @classmethod
    def of(cls, device: torch.device, rank: int, world_size: int) -> DeviceMeter:
        return cls(CudaSource(device) if device.type == "cuda" else CpuSource(), rank, world_size)

    def places(self) -> list[float]:
        """What this rank adds to the reduction: three numbers for each rank, zeros but for its own."""
        if time.perf_counter() - self._read_at >= AT_MOST_EVERY_SECONDS:
            self._load, self._read_at = self._source.read(), time.perf_counter()
        own = list(astuple(self._load))
        return [0.0] * (len(own) * self._rank) + own + [0.0] * (len(own) * (self._world_size - 1 - self._rank))

    @staticmethod
    def record(summed: list[float]) -> dict[str, Any]:
        """Lists with an entry for each rank, from what `places` summed to; None for an unknown utilisation."""
        return {
            "memory_bytes": [int(value) for value in summed[0::3]],
            "memory_total_bytes": [int(value) for value in summed[1::3]],
            "utilisation": [None if value == UNKNOWN else round(value, 4) for value in summed[2::3]],
        }


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system

"""Each rank's memory and utilisation: what is read, and how it reaches rank 0."""

from __future__ import annotations

import mmap
import time

import numpy as np
import pytest
import torch
from gemfleet.train.device.meter import UNKNOWN, CpuSource, DeviceLoad, DeviceMeter

GIB = 2**30


class Source:
    """A device whose memory grows by a GiB at each look."""

    def __init__(self, utilisation: float) -> None:
        self.looks, self.utilisation = 0, utilisation

    def read(self) -> DeviceLoad:
        self.looks += 1
        return DeviceLoad(self.looks * GIB, 80 * GIB, self.utilisation)


def test_the_sum_over_ranks_holds_each_ranks_own_figures() -> None:
    meters = [DeviceMeter(Source(share), rank, 3) for rank, share in enumerate((0.5, UNKNOWN, 1.0))]
    summed = np.sum([meter.places() for meter in meters], axis=0).tolist()
    assert DeviceMeter.record(summed) == {
        "memory_bytes": [GIB, GIB, GIB],
        "memory_total_bytes": [80 * GIB] * 3,
        "utilisation": [0.5, None, 1.0],
    }


def test_the_device_is_looked_at_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("gemfleet.train.device.meter.time.perf_counter", lambda: now)
    source = Source(0.5)
    meter = DeviceMeter(source, 0, 1)
    assert meter.places() == meter.places()
    now = 101.5
    assert meter.places()[0] == 2 * GIB
    assert source.looks == 2


@pytest.mark.slow
def test_a_cpu_rank_tells_its_resident_set_and_its_use_of_its_cores() -> None:
    source, size, grown = CpuSource(), 64 * 2**20, []
    for _ in range(5):  # meanwhile the kernel may take pages back that other tests left behind
        before = source.read()
        held = mmap.mmap(-1, size)  # not from memory that other tests have freed and the process still has
        np.frombuffer(held, np.uint8)[:] = 1
        after = source.read()
        grown.append(after.memory_bytes - before.memory_bytes)
        held.close()
    assert any(size / 2 < growth < 2 * size for growth in grown), grown
    assert before.memory_bytes < before.memory_total_bytes
    source.read()
    time.sleep(0.2)
    assert source.read().utilisation < 0.9
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    assert 0 < source.read().utilisation <= 1


@pytest.mark.gpu
def test_a_gpu_rank_tells_what_its_driver_tells() -> None:
    device = torch.device("cuda", 0)
    source = DeviceMeter.of(device, 0, 1)
    before = source.places()
    held = torch.ones(2**30, dtype=torch.uint8, device=device)
    torch.cuda.synchronize()
    time.sleep(1.1)
    memory, total, utilisation = source.places()
    assert memory - before[0] >= held.numel()
    assert total == torch.cuda.get_device_properties(device).total_memory
    assert utilisation == UNKNOWN or 0 <= utilisation <= 1

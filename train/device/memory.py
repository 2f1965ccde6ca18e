"""Memory that this process uses and may use, in bytes: its resident set on a CPU, reserved memory on a GPU."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WATCH_SECONDS = 0.02
UNLIMITED = 1 << 60  # kernels write "no limit" as a number near 2^63


def resident_bytes() -> int:
    return _status("VmRSS")


def peak_resident_bytes() -> int:
    """The peak since the process began, or since it was reset. `getrusage`'s would start at the parent's peak."""
    return _status("VmHWM")


def reset_peak(device: torch.device) -> None:
    """Begins a new measurement: returns cached memory and resets the peak."""
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    forget_resident_peak()


def forget_resident_peak() -> None:
    """Resets the peak that `peak_resident_bytes` reads."""
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to the present resident set, see proc(5)


def peak_bytes(device: torch.device) -> int:
    """The peak since `reset_peak`."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_reserved(device)
    return peak_resident_bytes()


def usable_limit(device: torch.device, asked: int | None, ranks_on_node: int) -> int:
    """The memory that this rank may use: its part of the device or container, and at most `asked`."""
    if device.type == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info(device)
        # torch cannot reserve what this process's context and other processes hold.
        own = torch.cuda.memory_reserved(device)
        limits = [min(total, free + own)]
    else:
        limits = [limit // max(1, ranks_on_node) for limit in (machine_bytes(), container_bytes()) if limit is not None]
    return min([*limits, *([] if asked is None else [asked])])


def machine_bytes() -> int:
    """The machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def container_bytes(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int | None:
    """The smallest limit of this process's control groups, version 1 or 2; None if there is none."""
    if not own.exists():
        return None
    found = []
    for line in own.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base, name = (root, "memory.max") if not controllers else (root / "memory", "memory.limit_in_bytes")
        folder = base / path.strip("/")
        for place in (folder, *folder.parents):
            if place == base.parent:
                break
            found += _limit(place / name)
    return min(found, default=None)


def _limit(path: Path) -> list[int]:
    try:
        text = path.read_text().strip()
    except OSError:
        return []
    return [int(text)] if text.isdigit() and int(text) < UNLIMITED else []


def _status(field: str) -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


class MemoryWatch(threading.Thread):
    """Calls `on_excess` with the resident set as soon as that is above `limit`, before the machine runs out."""

    def __init__(self, limit: int, on_excess: Callable[[int], None]) -> None:
        super().__init__(name="memory-watch", daemon=True)
        self._limit, self._on_excess = limit, on_excess
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(WATCH_SECONDS):
            resident = resident_bytes()
            if resident > self._limit:
                self._on_excess(resident)
                return

    def stop(self) -> None:
        self._done.set()

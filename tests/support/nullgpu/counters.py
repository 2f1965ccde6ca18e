"""What the stand-in counted in this process: launches, waits for the device, copies, collectives."""

from __future__ import annotations

import ctypes
from collections import Counter
from functools import cache


def counts() -> Counter[str]:
    """All counters now. Differences of two are what happened in between."""
    library, names = _library()
    values = (ctypes.c_long * len(names))()
    library.nullgpu_counters(values)
    return Counter(dict(zip(names, values, strict=True)))


def host_waits(found: Counter[str]) -> int:
    """How often the host waited for the device."""
    return sum(found[name] for name in ("stream_syncs", "device_syncs", "event_syncs", "blocking_copies"))


@cache
def _library() -> tuple[ctypes.CDLL, list[str]]:
    """It was loaded before this program; RuntimeError where it was not."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "nullgpu_counters"):
        raise RuntimeError("this process runs without the stand-in")
    library.nullgpu_counter_names.restype = ctypes.c_char_p
    return library, library.nullgpu_counter_names().decode().split()

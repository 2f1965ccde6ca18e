"""The facts of a sound node and of a sound link, as the doctor reads them."""

from __future__ import annotations

from typing import Any

GIB = 2**30
GPU = {
    "name": "NVIDIA H100 80GB HBM3",
    "total": 80 * GIB,
    "free": 79 * GIB,
    "processes": [],
    "ecc_errors": 0,
    "throttled": [],
    "celsius": 31,
}
NODE: dict[str, Any] = {
    "versions": {
        "python": "3.11.7",
        "cuda": "12.8",
        "gemfleet": "0.1.0",
        "ray": "2.60.0",
        "torch": "2.13.0",
        "numpy": "2.4",
    },
    "gpus": {"count": 2, "problem": "", "driver": "570.1", "devices": [GPU, GPU]},
    "disks": {name: {"total": 100 * GIB, "free": 50 * GIB} for name in ("home", "temporary", "shared memory")},
    "limits": {"open files": 1 << 20, "processes": -1, "locked memory": -1},
    "interface": {"name": "eth0", "set": False, "exists": True, "mbits": 10_000, "mtu": 9000, "infiniband_gbits": 0.0},
    "auth": "token",
}


def link(resent: float = 0.0, problem: str = "") -> dict[str, Any]:
    return {"problem": problem, "latency_s": 0.001, "speed": 1e8, "resent": resent}

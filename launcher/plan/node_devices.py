"""Looks at the devices of a node, in a Ray task. Imports little, because the task waits for its imports."""

from __future__ import annotations

import os
import platform
import subprocess
from typing import Any

from gemfleet.train.device.cpu import cpu_gains_from_bf16
from gemfleet.train.device.memory import container_bytes, machine_bytes


def device_facts() -> dict[str, Any]:
    """This node's processor, memory and GPUs. Reserves none of them.

    memory, container: bytes of the machine and of its container (None without one); gpus: lines `NAME, 81559 MiB`
    """
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "memory": machine_bytes(),
        "container": container_bytes(),
        "bf16_gains": cpu_gains_from_bf16(),
        "gpus": _gpus(),
    }


def _gpus() -> list[str]:
    try:
        query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []

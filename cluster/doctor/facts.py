"""Reads what one node has. It runs on that node and imports nothing heavy: every run's preflight asks it.

Facts travel as plain dictionaries, so that a node with another gemfleet can still answer.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import socket
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..network import INTERFACE_VARIABLES, interface_for
from .gpus import gpu_facts

PACKAGES = (
    *("gemfleet", "ray", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "deepspeed"),
    *("safetensors", "tokenizers", "datasets", "pyarrow", "numpy", "liger-kernel"),
)


def node_facts(home: str) -> dict[str, Any]:
    """Everything that can be read without a measurement. `home`: the driver's GEMFLEET_HOME."""
    import ray.util

    address = ray.util.get_node_ip_address()
    return {
        "address": address,
        "hostname": socket.gethostname(),
        "versions": versions(),
        "gpus": gpu_facts(),
        "disks": disks(home),
        "limits": limits(),
        "interface": interface_facts(address),
        "auth": os.environ.get("RAY_AUTH_MODE", ""),
    }


def versions() -> dict[str, str]:
    """The versions of Python, of the CUDA that torch was built for, and of each package; empty when it is missing."""
    return {"python": platform.python_version(), "cuda": _torch_cuda()} | {name: _version(name) for name in PACKAGES}


def disks(home: str) -> dict[str, dict[str, int]]:
    """Total and free bytes of the disk of runs and staged models, of Ray's spills and logs, and of shared memory."""
    folders = {"home": _existing(Path(home).expanduser()), "temporary": Path("/tmp"), "shared memory": Path("/dev/shm")}
    found = {}
    for name, folder in folders.items():
        if folder.is_dir():
            usage = shutil.disk_usage(folder)
            found[name] = {"total": usage.total, "free": usage.free}
    return found


def limits() -> dict[str, int]:
    """Soft limits of Ray's processes here: open files, processes, and bytes of locked memory. -1: no limit."""
    kinds = {
        "open files": resource.RLIMIT_NOFILE,
        "processes": resource.RLIMIT_NPROC,
        "locked memory": resource.RLIMIT_MEMLOCK,
    }
    return {name: resource.getrlimit(kind)[0] for name, kind in kinds.items()}


def interface_facts(address: str) -> dict[str, Any]:
    """The interface that gloo and NCCL use here, and its speed. `mbits`: 0 when the kernel cannot say."""
    named = os.environ.get(INTERFACE_VARIABLES[0], "")
    name = named or interface_for(address) or ""
    folder = Path("/sys/class/net", name)
    return {
        "name": name,
        "set": bool(named),
        "exists": bool(name) and any(entry == name for _, entry in socket.if_nameindex()),
        "mbits": max(0, _number(folder / "speed")) if (folder / "device").exists() else 0,
        "mtu": _number(folder / "mtu"),
        "infiniband_gbits": _infiniband_gbits(),
    }


def _infiniband_gbits() -> float:
    """The speed of all active InfiniBand ports together. The kernel says `400 Gb/sec (4X NDR)` of each."""
    total = 0.0
    for rate in Path("/sys/class/infiniband").glob("*/ports/*/rate"):
        try:
            active = "ACTIVE" in (rate.parent / "state").read_text()
            total += float(rate.read_text().split()[0]) if active else 0.0
        except (OSError, ValueError, IndexError):
            continue
    return total


def _torch_cuda() -> str:
    """The CUDA that torch was built for, from its version file: to import torch takes seconds."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    try:
        found = re.search(r"^cuda.*=\s*'([^']*)'", (Path(spec.origin).parent / "version.py").read_text(), re.MULTILINE)
    except OSError:
        return ""
    return found[1] if found else "none"


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""

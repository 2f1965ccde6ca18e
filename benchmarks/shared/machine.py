"""What a measurement was taken on: processor, memory, library versions, source revision."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from gemfleet.train.device.cpu import cpu_flags, cpu_name

LIBRARIES = (
    *("gemfleet", "torch", "transformers", "peft", "trl", "accelerate", "datasets", "ray", "deepspeed"),
    *("bitsandbytes", "liger_kernel", "triton"),
)
# The flags that decide how fast a bf16 or fp32 matrix product is.
MATRIX_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0))


def facts() -> dict[str, Any]:
    """What a record says of the machine, the source and the command, as of now."""
    libraries = {"python": platform.python_version(), **dict(_versions())}
    return {"command": command_line(), "git_commit": git_commit(), "hardware": hardware(), "versions": libraries}


def hardware() -> dict[str, Any]:
    """The machine, without its name."""
    return {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "cpu_flags": [flag for flag in MATRIX_FLAGS if flag in cpu_flags()],
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average_at_start": [round(load, 2) for load in psutil.getloadavg()],
        "system": f"{platform.system()} {platform.machine()}",
        **_gpus(),
    }


def _gpus() -> dict[str, Any]:
    """GPUs by name with their driver and CUDA; nothing where there are none. Starts no CUDA context here."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return {}
    import torch

    rows = [line.split(", ") for line in lines if ", " in line]
    return {"gpus": [row[0] for row in rows], "driver": rows[0][1], "cuda": torch.version.cuda} if rows else {}


def _versions() -> Iterator[tuple[str, str]]:
    """Of the libraries that take part and are installed."""
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            yield name, metadata.version(name)


def git_commit() -> str | None:
    """The source revision; with `-dirty-` and a hash of the changes where there are some; None outside a repository."""
    try:
        commit = _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
        if not commit.endswith("-dirty"):
            return commit
        return f"{commit}-{hashlib.sha256(_git('diff', 'HEAD').encode()).hexdigest()[:8]}"
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    folder = Path(__file__).parent
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def command_line() -> str:
    """The command as typed; of absolute paths only the last part, so that no record names a folder of its machine."""
    return " ".join(["python -m benchmarks", *(re.sub(r"(?:^|(?<==))/.*/", "", word) for word in sys.argv[1:])])

"""Programs on pretended GPUs: `python -m gemfleet.train`, `torchrun`, `gemfleet`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from support.nullgpu.device import PretendedGpu

SECONDS = 280.0
TESTS = Path(__file__).resolve().parents[2]


def run(
    folder: Path,
    arguments: list[str],
    gpu: PretendedGpu,
    variables: Mapping[str, str] | None = None,
    seconds: float = SECONDS,
) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` in this folder, its output and errors together."""
    path = [str(TESTS), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, **gpu.variables(), "OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(filter(None, path))}
    environment.update(variables or {})
    return subprocess.run(
        [sys.executable, "-P", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
    )


def write_config(workplace: Path, name: str = "run", cluster: dict[str, Any] | None = None, **train: Any) -> str:
    """A run of a few steps on the rows of `make_workplace`; returns the file's name."""
    section: dict[str, Any] = {
        "model": "./model",
        "data": {"train": "rows.jsonl", "max_length": 64},
        "batch": {"global": 4},
        "max_steps": 6,
        "checkpoint": {"every": 4},
        "compile": False,
    }
    nothing_computed = {"compare": 0}  # the kernels do nothing, so no two results are alike
    config = {"name": name, "train": {**section, **train}, "output": nothing_computed}
    config |= {"cluster": cluster} if cluster else {}
    (workplace / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return f"{name}.yaml"

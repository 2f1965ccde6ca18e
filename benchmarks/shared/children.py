"""The environment of the processes that suites measure in."""

from __future__ import annotations

import os
from pathlib import Path


def child_environment(threads: int, hide_gpus: bool = True) -> dict[str, str]:
    """The caller's environment with the thread count set and the hub out of reach.

    The package's own root comes first on the path, so that `python -m benchmarks` works from the repository alone.
    """
    assert __package__ is not None
    root = Path(__file__).resolve().parents[len(__package__.split("."))]
    path = [str(root)] if not __package__.startswith("gemfleet.") else []
    path += [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(path),
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **({"CUDA_VISIBLE_DEVICES": ""} if hide_gpus else {}),
    }

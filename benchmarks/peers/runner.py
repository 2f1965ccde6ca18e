"""Runs the contenders in turn, each in a fresh process, and collects what they report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .stats import Outcome
from .task import Task

# progress(contender, repeat, steps done)
Progress = Callable[[str, int, int], None]


def schedule(contenders: Sequence[str], repeats: int) -> list[tuple[int, str]]:
    """Alternate the contenders, turning their order around in every other repeat, so that a machine that slows down or
    warms up hits them alike."""
    return [
        (repeat, name)
        for repeat in range(repeats)
        for name in (contenders if repeat % 2 == 0 else tuple(reversed(contenders)))
    ]


def run_all(task: Task, contenders: Sequence[str], repeats: int, progress: Progress) -> list[Outcome]:
    """One outcome per contender and repeat, in the order they ran. A contender that fails does not end the rest."""
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        task_file = Path(folder) / "task.json"
        task.save(task_file)
        return [
            run_one(name, repeat, task_file, len(task.batches), task.threads, progress)
            for repeat, name in schedule(contenders, repeats)
        ]


def run_one(
    contender: str, repeat: int, task_file: Path, steps: int, threads: int, progress: Progress = lambda *_: None
) -> Outcome:
    """Run one contender to its end and read its events."""
    seconds: list[float] = []
    losses: list[float] = []
    peak = 0
    log_file = task_file.with_name(f"{contender}-{repeat}.log")
    command = [sys.executable, "-m", f"{__package__}.child", contender, str(task_file)]
    with (
        log_file.open("wb") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, env=child_environment(threads), text=True, encoding="utf-8"
        ) as process,
    ):
        try:
            for event in _events(process):
                if event["event"] == "step":
                    seconds.append(event["seconds"])
                    losses.append(event["loss"])
                    progress(contender, repeat, len(seconds))
                elif event["event"] == "finish":
                    peak = int(event["peak_rss_bytes"])
        except BaseException:
            process.kill()
            raise
    error = None
    if process.returncode != 0 or len(seconds) != steps:
        error = _failure(process.returncode, len(seconds), steps, log_file)
    return Outcome(contender, repeat, tuple(seconds), tuple(losses), peak, error)


def child_environment(threads: int) -> dict[str, str]:
    """The caller's environment with the thread count set, GPUs hidden and the hub out of reach.

    The package's own root comes first on the path, so that `python -m benchmarks` works from the repository alone.
    """
    assert __package__ is not None
    root = Path(__file__).resolve().parents[len(__package__.split("."))]
    path = [str(root)] if not __package__.startswith("gemfleet.") else []
    path += [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(path),
        "OMP_NUM_THREADS": str(threads),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _events(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def _failure(code: int, done: int, steps: int, log_file: Path) -> str:
    lines = log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = lines[-1] if lines else "it printed nothing"
    return f"ended with code {code} after {done} of {steps} steps: {last}"

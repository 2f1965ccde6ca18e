"""Runs a contender in a fresh process and collects what it reports."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..shared.children import child_environment
from .stats import Outcome

# progress(steps done)
Progress = Callable[[int], None]


def run_one(
    contender: str, repeat: int, task_file: Path, steps: int, threads: int, progress: Progress = lambda _: None
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
                    progress(len(seconds))
                elif event["event"] == "finish":
                    peak = int(event["peak_rss_bytes"])
        except BaseException:
            process.kill()
            raise
    error = None
    if process.returncode != 0 or len(seconds) != steps:
        error = _failure(process.returncode, len(seconds), steps, log_file)
    return Outcome(contender, repeat, tuple(seconds), tuple(losses), peak, error)


def _events(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def _failure(code: int, done: int, steps: int, log_file: Path) -> str:
    lines = log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = lines[-1] if lines else "it printed nothing"
    return f"ended with code {code} after {done} of {steps} steps: {last}"

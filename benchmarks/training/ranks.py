"""Starts the processes of a measurement, listens to rank 0, and ends them all together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gemfleet.train.step.record import SUITE_FIGURES

from ..shared.children import child_environment
from ..shared.record import Run
from ..shared.repeat import start_run
from .case import RankTask, TrainingCase

SLOW_DOWN_VARIABLE = "GEMFLEET_BENCH_SLOW_DOWN"
POLL_SECONDS = 0.2
# Of each step's record, what a run keeps as a list among its facts.
PER_STEP = tuple(name for name in SUITE_FIGURES if name not in Run.model_fields)


def measure_training(
    case: TrainingCase, model_folder: Path, repeat: int, tick: Callable[[str], None], profile: Path | None = None
) -> Run:
    """Train the case once in fresh processes. A rank that dies ends the others, and the run says why."""
    with tempfile.TemporaryDirectory(prefix="bench-ranks-") as work:
        slow_down = float(os.environ.get(SLOW_DOWN_VARIABLE, "0"))
        task = RankTask(case, model_folder, Path(work), profile, slow_down)
        task.save(Path(work) / "task.json")
        ranks = [_start(task, rank) for rank in range(case.ranks)]
        try:
            watcher = threading.Thread(target=_end_with_the_first_failure, args=(ranks,), daemon=True)
            watcher.start()
            run = _listen(ranks[0], start_run(repeat), tick)
            codes = [rank.wait() for rank in ranks]
            watcher.join()
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
        return run.model_copy(update={"error": _failure(case, run, codes, Path(work))})


def _start(task: RankTask, rank: int) -> subprocess.Popen[str]:
    environment = child_environment(task.case.threads, hide_gpus=task.case.device == "cpu") | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(task.case.ranks),
        "LOCAL_WORLD_SIZE": str(task.case.ranks),
        **({"GLOO_SOCKET_IFNAME": "lo"} if task.case.device == "cpu" else {}),
    }
    command = [sys.executable, "-m", f"{__package__}.child", str(task.work_folder / "task.json")]
    with (task.work_folder / f"rank-{rank}.log").open("wb") as log:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment, text=True)


def _listen(rank: subprocess.Popen[str], run: Run, tick: Callable[[str], None]) -> Run:
    """Everything that rank 0 tells until it closes its output."""
    assert rank.stdout is not None
    seconds: list[float] = []
    tokens: list[int] = []
    losses: list[float] = []
    facts: dict[str, Any] = {name: [] for name in (*PER_STEP, "communication_seconds")}
    for line in rank.stdout:
        event = json.loads(line)
        if event["event"] == "finish":
            facts |= event["facts"]
            continue
        record = event["record"]
        seconds.append(record["step_seconds"])
        tokens.append(record["tokens"])
        losses.append(record["loss"])
        for name in PER_STEP:
            facts[name].append(record[name])
        facts["communication_seconds"].append(event["communication_seconds"])
        tick(f"step {len(seconds)}")
    return run.model_copy(update={"step_seconds": seconds, "tokens": tokens, "losses": losses, "facts": facts})


def _end_with_the_first_failure(ranks: list[subprocess.Popen[str]]) -> None:
    """Ranks whose peer has died would wait for it in a collective."""
    while True:
        codes = [rank.poll() for rank in ranks]
        if any(code not in (None, 0) for code in codes):
            for rank in ranks:
                rank.kill()
        if None not in codes:
            return
        time.sleep(POLL_SECONDS)


def _failure(case: TrainingCase, run: Run, codes: list[int], work: Path) -> str | None:
    """Why a run does not count; None where it does."""
    if any(codes) or len(run.step_seconds) != case.total_steps or "peak_memory_bytes" not in run.facts:
        rank = next((rank for rank, code in enumerate(codes) if code > 0), 0)
        lines = (work / f"rank-{rank}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = lines[-1] if lines else "it printed nothing"
        return f"rank {rank} ended with code {codes[rank]} after {len(run.step_seconds)} steps: {last}"
    if any(norm <= 0 for norm in run.facts["grad_norm"]):
        return "a step had a gradient norm of 0, so nothing was trained"
    return None

"""What watching costs: one training run whose API is asked once a second and streams to two readers, in turn with none.

Everything shares this machine's cores: the ranks, the API, and the readers, whose own work is in the figure too.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from gemfleet.cluster.registry.run_registry import RunRegistry
from gemfleet.train.errors import UserError

from ..shared.record import Record, new_record
from .load import put_load

RATE, STREAMS = 1.0, 2
SEGMENT_SECONDS = 8.0
SETTLE_SECONDS = 0.5  # of each segment's beginning count for nothing: connections open, streams tell of the past
WARMUP_STEPS = 20
START_SECONDS = 300.0
# Every example fills its row, so that all steps are equal work.
CONFIG: dict[str, Any] = {
    "name": "watched",
    "train": {
        "model": "demo",
        "data": {"train": "rows.jsonl", "max_length": 96, "too_long": "truncate", "eval_fraction": 0.0},
        "batch": {"global": 2, "micro": 1},
        "strategy": "ddp",
        "activation_checkpointing": "off",
        "epochs": 1000.0,
        "evaluation": {"every": "never"},
        "checkpoint": {"every": "never"},
    },
    "cluster": {"address": "local", "workers": 2},
    "api": {"port": 0},
}


@dataclass(frozen=True)
class Segment:
    """A stretch of time, in seconds since the epoch, in which the run was watched or not."""

    watched: bool
    start: float
    end: float


def measure_training(pairs: int, model: str = "demo") -> Record:
    """Alternate segments in one run, `pairs` of each kind, and compare the speed of the steps within them."""
    with tempfile.TemporaryDirectory(prefix="bench-api-") as folder, training(Path(folder), model) as (url, run_id):
        registry = RunRegistry(Path(folder) / "home" / "gemfleet.db")
        wait_for_steps(registry, run_id, WARMUP_STEPS)
        segments = [alternate(url, run_id, watched) for watched in order(pairs)]
        steps = registry.metrics(run_id, kind="step")
    config = {"rate": RATE, "streams": STREAMS, "segment_seconds": SEGMENT_SECONDS, "pairs": pairs, "run": CONFIG}
    found = {"summary": summarise(steps, segments), "load_average": [round(load, 2) for load in psutil.getloadavg()]}
    return new_record("api", "training", config, results=found)


def order(pairs: int) -> list[bool]:
    """Watched or not, so that a machine that slows down or warms up hits both alike: on off, off on, …"""
    return [watched for pair in range(pairs) for watched in ((True, False) if pair % 2 == 0 else (False, True))]


def alternate(url: str, run_id: str, watched: bool) -> Segment:
    start = time.time()
    if watched:
        run = f"/api/v1/runs/{run_id}"
        asked = [
            ("run", lambda: run),
            ("metrics", lambda: f"{run}/metrics?since_step=1&limit=20"),
            ("events", lambda: f"{run}/events"),
        ]
        result = asyncio.run(put_load(url, asked, RATE, SEGMENT_SECONDS, STREAMS, f"{run}/events?metrics=true"))
        if result.failures:
            raise UserError(
                f"{result.failures} requests failed; the API must answer all for the figure to mean something"
            )
    time.sleep(max(0.0, start + SEGMENT_SECONDS - time.time()))
    return Segment(watched, start, time.time())


def summarise(steps: Sequence[Mapping[str, Any]], segments: Sequence[Segment]) -> dict[str, Any]:
    """Step times within segments of each kind, and the slow-down: how much longer a watched step takes, as a share.

    standard_error: of the slow-down, from the spread of single steps.
    """
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for step in steps:
        began = step["time"] - step["step_seconds"]
        for segment in segments:
            if segment.start + SETTLE_SECONDS <= began and step["time"] <= segment.end:
                seconds[segment.watched].append(step["step_seconds"])
    if min(len(found) for found in seconds.values()) < 2:
        raise UserError("too few steps fell into the segments; measure longer (--pairs)")
    means = {watched: statistics.fmean(found) for watched, found in seconds.items()}
    ratio = means[True] / means[False]
    spread = [statistics.variance(found) / len(found) / means[kind] ** 2 for kind, found in seconds.items()]
    return {
        "slow_down": ratio - 1,
        "standard_error": ratio * math.sqrt(sum(spread)),
        "slow_down_of_medians": statistics.median(seconds[True]) / statistics.median(seconds[False]) - 1,
        "watched": {"steps": len(seconds[True]), "mean_seconds": means[True]},
        "alone": {"steps": len(seconds[False]), "mean_seconds": means[False]},
    }


@contextmanager
def training(folder: Path, model: str) -> Iterator[tuple[str, str]]:
    """A run of two ranks that goes on until the block ends: the API's address and the run's id."""
    config = {**CONFIG, "train": {**CONFIG["train"], "model": model}}
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    text = " ".join(f"word{number % 97} of a long row" for number in range(200))
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": f"{n} {text}"}) + "\n" for n in range(64)))
    command = [sys.executable, "-m", "gemfleet.launcher.cli", "train", "run.yaml"]
    environment = {**os.environ, "GEMFLEET_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield wait_for_dashboard(process, folder / "output.txt")
    finally:
        process.terminate()  # saves a checkpoint and ends
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_for_dashboard(process: subprocess.Popen[bytes], output: Path) -> tuple[str, str]:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        for line in output.read_text().splitlines():
            if line.startswith("dashboard: http"):
                url, _, run_id = line.split(" ", 1)[1].partition("/#/runs/")
                return url, run_id
        time.sleep(0.2)
    raise UserError(f"the training run did not start: {output.read_text()[-500:]}")


def wait_for_steps(registry: RunRegistry, run_id: str, least: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        newest = registry.latest_metrics(run_id, "step")
        if newest is not None and newest["step"] >= least:
            return
        if registry.get_run(run_id).state.is_terminal:
            raise UserError(f"the training run ended early: {registry.get_run(run_id).reason}")
        time.sleep(0.2)
    raise UserError(f"the training run did not come to step {least} within {START_SECONDS:g} s")

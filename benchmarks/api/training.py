"""What watching costs: one training run whose API is asked once a second and streams to two readers, in turn with none.

Everything shares this machine's cores: the ranks, the API, and the readers, whose own work is in the figure too.
"""

from __future__ import annotations

import asyncio
import math
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, variance
from typing import Any, NamedTuple

from gemfleet.benchmarks.shared.whole_runs import WORKERS, Gemfleet, write_run
from gemfleet.train.errors import UserError

from .load import put_load

RATE, STREAMS = 1.0, 2
SEGMENT_SECONDS = 8.0
SETTLE_SECONDS = 0.5  # of each segment's beginning count for nothing: connections open, streams tell of the past
WARMUP_STEPS = 20
# Every example fills its row, so that all steps are equal work.
TRAIN: dict[str, Any] = {
    "model": "demo",
    "data": {"max_length": 96, "too_long": "truncate"},
    "batch": {"global": 2, "micro": 1},
    "epochs": 1000.0,
    "checkpoint": {"every": "never"},
}


class Segment(NamedTuple):
    """A stretch of time, in seconds since the epoch, in which the run was watched or not."""

    watched: bool
    start: float
    end: float


def measure_watching(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Alternate segments in one run, `pairs` of each kind, and compare the speed of the steps within them."""
    os.environ["OMP_NUM_THREADS"] = "1"
    text = " ".join(f"word{number % 97} of a long row" for number in range(200))
    with tempfile.TemporaryDirectory(prefix="bench-api-") as folder:
        place = Path(folder)
        cluster = {"address": "local", "workers": WORKERS}
        write_run(place, [{"text": f"{n} {text}"} for n in range(64)], dict(TRAIN), cluster=cluster, api={"port": 0})
        # Being terminated, the run saves a checkpoint and ends.
        with Gemfleet(place, place / "home", "train", "run.yaml", grace=60) as run:
            url, run_id = run.dashboard()
            registry, _, _ = run.step(lambda step: step["step"] >= WARMUP_STEPS)
            segments = [alternate(url, run_id, watched) for watched in order(settings["pairs"])]
            steps = registry.metrics(run_id, kind="step")
    return {"summary": summarise(steps, segments)}


def order(pairs: int) -> list[bool]:
    """Watched or not, so that a machine that slows down or warms up hits both alike: on off, off on, …"""
    return [watched for pair in range(pairs) for watched in ((True, False) if pair % 2 == 0 else (False, True))]


def alternate(url: str, run_id: str, watched: bool) -> Segment:
    start = time.time()
    if watched:
        run = f"/api/v1/runs/{run_id}"
        asked = [("", lambda path=path: f"{run}{path}") for path in ("", "/metrics?since_step=1&limit=20", "/events")]
        result = asyncio.run(put_load(url, asked, RATE, SEGMENT_SECONDS, STREAMS, f"{run}/events?metrics=true"))
        if result.failures:
            raise UserError(f"{result.failures} requests failed; the figure means something only if all are answered")
    time.sleep(max(0.0, start + SEGMENT_SECONDS - time.time()))
    return Segment(watched, start, time.time())


def summarise(steps: Sequence[Mapping[str, Any]], segments: Sequence[Segment]) -> dict[str, Any]:
    """Step times within segments of each kind, and the slow-down: how much longer a watched step takes, as a share; its
    standard error comes from the spread of single steps."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for step in steps:
        began = step["time"] - step["step_seconds"]
        for segment in segments:
            if segment.start + SETTLE_SECONDS <= began and step["time"] <= segment.end:
                seconds[segment.watched].append(step["step_seconds"])
    if min(len(found) for found in seconds.values()) < 2:
        raise UserError("too few steps fell into the segments; measure longer (--pairs)")
    means, medians = ({kind: of(found) for kind, found in seconds.items()} for of in (fmean, median))
    ratio = means[True] / means[False]
    spread = [variance(found) / len(found) / means[kind] ** 2 for kind, found in seconds.items()]
    return {
        "slow_down": ratio - 1,
        "standard_error": ratio * math.sqrt(sum(spread)),
        "slow_down_of_medians": medians[True] / medians[False] - 1,
        **{n: {"steps": len(seconds[k]), "mean_seconds": means[k]} for n, k in (("watched", True), ("alone", False))},
    }

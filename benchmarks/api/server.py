"""A fixed rate of requests and many open event streams on a `gemfleet serve` whose run goes on meanwhile.

The server, the load and a writer that plays a run share this machine's cores, with whatever else runs on them.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from gemfleet.benchmarks.shared.record import quantile
from gemfleet.benchmarks.shared.whole_runs import Gemfleet
from gemfleet.cluster.registry.run_registry import RunRegistry, RunState

from .load import put_load

RUN_ID = "bench-live"
RUN = f"/api/v1/runs/{RUN_ID}"
OTHER_RUNS, STEPS, EVENTS = 30, 2_000, 200
STEP_SECONDS = 0.5
QUANTILES = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99, "max_ms": 1.0}
CONFIG = "train:\n  model: demo\n  data: {train: demo}\n"
# A record of the size and shape that rank 0 reports.
STEP_RECORD: dict[str, Any] = {
    **dict.fromkeys(("grad_norm", "learning_rate", "step_seconds", "data_wait_seconds", "tokens_per_second"), 0.5),
    **dict.fromkeys(("raw_tokens", "tokens", "supervised_tokens", "peak_memory_bytes"), 4096),
}
STEP_RECORD |= {"kind": "step", "total_steps": 10**6, "epochs": 1e3, "world_size": 2, "seconds_left": 1e3}


def measure_load(settings: Mapping[str, Any]) -> dict[str, Any]:
    """settings: `rate` (requests a second), `seconds`, `streams` (open beside them)."""
    with tempfile.TemporaryDirectory(prefix="bench-api-") as folder:
        home = Path(folder) / "home"
        registry, steps, memory = fill(home), [STEPS], list[int]()
        with Gemfleet(Path(folder), home, "serve", "--port", "0", grace=15) as server:
            url, _ = server.dashboard()
            process = psutil.Process(server.process.pid)
            asyncio.run(put_load(url, paths(steps), 20.0, 3.0, 0, ""))  # imports and caches are warm after it
            cpu = process.cpu_times()
            with live_run(registry, steps, lambda: memory.append(process.memory_info().rss)):
                load = settings["rate"], settings["seconds"], settings["streams"]
                result = asyncio.run(put_load(url, paths(steps), *load, f"{RUN}/events"))
            used = process.cpu_times()
    told = result.stream_events
    summary = {
        **times([seconds for kind in result.seconds.values() for seconds in kind]),
        "failures": result.failures,
        "server_cores": (used.user + used.system - cpu.user - cpu.system) / settings["seconds"],
        "memory_mib": [round(size / 2**20, 1) for size in memory],
        "streams": len(told),
        "events_written": len(steps) - 1,
        "events_told": {"least": min(told, default=0), "most": max(told, default=0)},
    }
    return {"summary": summary, "by_kind": {kind: times(seconds) for kind, seconds in result.seconds.items()}}


def fill(home: Path) -> RunRegistry:
    """A registry with one long run that goes on, of this process, and ended ones around it."""
    home.mkdir()
    registry = RunRegistry(home / "gemfleet.db")
    for number in range(OTHER_RUNS):
        registry.create_run(f"bench-{number}", "bench", CONFIG)
        registry.transition(f"bench-{number}", RunState.SUCCEEDED)
    registry.create_run(RUN_ID, "bench", CONFIG, os.getpid())
    registry.transition(RUN_ID, RunState.TRAINING)
    registry.add_metrics(RUN_ID, [step_record(step) for step in range(1, STEPS + 1)])
    for number in range(EVENTS):
        registry.add_event(RUN_ID, "note", f"event {number}")
    for rank in range(8):
        registry.heartbeat(RUN_ID, rank, f"node-{rank}", "127.0.0.1", os.getpid())
    return registry


@contextmanager
def live_run(registry: RunRegistry, steps: list[int], each_step: Callable[[], None]) -> Iterator[None]:
    """Writes what a run of two steps a second would while the block runs; each step becomes the last of `steps`."""
    ended = threading.Event()

    def write() -> None:
        while not ended.wait(STEP_SECONDS):
            steps.append(steps[-1] + 1)
            registry.add_metrics(RUN_ID, [step_record(steps[-1])])
            registry.add_event(RUN_ID, "note", f"step {steps[-1]}")
            each_step()

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def step_record(step: int) -> dict[str, Any]:
    return {**STEP_RECORD, "step": step, "epoch": step / 1000, "loss": 2.0 + 1.0 / step, "time": time.time()}


def paths(steps: list[int]) -> list[tuple[str, Callable[[], str]]]:
    """What a dashboard or a platform asks for, again and again."""
    return [
        ("run", lambda: RUN),
        ("metrics", lambda: f"{RUN}/metrics?since_step={steps[-1] - 20}"),
        ("events", lambda: f"{RUN}/events?after=100&limit=50"),
    ]


def times(seconds: list[float]) -> dict[str, float]:
    return {"requests": len(seconds), **{name: 1000 * quantile(seconds, q) for name, q in QUANTILES.items()}}

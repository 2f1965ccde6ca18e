"""The registry that the load is put on: one long run that goes on, and ended ones around it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

from gemfleet.cluster.registry.run_registry import RunRegistry, RunState

RUN_ID = "bench-live"
OTHER_RUNS = 30
STEPS = 2_000
EVENTS = 200
CONFIG = "train:\n  model: demo\n  data: {train: demo}\n"


def step_record(step: int) -> dict[str, Any]:
    """A record of the size and shape that rank 0 reports."""
    return {
        "kind": "step",
        "step": step,
        "total_steps": 1_000_000,
        "epoch": step / 1000,
        "epochs": 1000.0,
        "loss": 2.0 + 1.0 / step,
        "grad_norm": 1.0,
        "learning_rate": 2e-4,
        "step_seconds": 0.5,
        "data_wait_seconds": 0.001,
        "raw_tokens": 8192,
        "tokens": 8192,
        "supervised_tokens": 4096,
        "world_size": 2,
        "peak_memory_bytes": 2**30,
        "tokens_per_second": 16384.0,
        "seconds_left": 1000.0,
        "time": time.time(),
    }


def fill(home: Path) -> RunRegistry:
    """The registry of `home`, filled. The run belongs to this process, so it counts as going on."""
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


class LiveRun:
    """Writes what a run of two steps a second would, until it is closed. `events`: how many events it added."""

    def __init__(self, registry: RunRegistry, seconds_per_step: float = 0.5) -> None:
        self._registry, self._seconds = registry, seconds_per_step
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self.step, self.events = STEPS, 0
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def _write(self) -> None:
        while not self._ended.wait(self._seconds):
            self.step += 1
            self._registry.add_metrics(RUN_ID, [step_record(self.step)])
            self._registry.add_event(RUN_ID, "note", f"step {self.step}")
            self.events += 1

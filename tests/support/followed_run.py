"""A run in a registry of its own that trackers follow: the test plays driver and ranks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gemfleet.cluster.registry.run_registry import RunRegistry, RunState
from gemfleet.launcher.config.reports import TrackerConfig
from gemfleet.launcher.tracking.follow import Follower
from gemfleet.launcher.tracking.state import TrackerState, tracker_states

RUN = "run-1"
SETTLED = """\
train: {model: demo, lora: {r: 8, target_modules: [q_proj, v_proj]}, data: {train: [{path: a.jsonl, weight: 2.0}]}}
output: {deliver: {repository: "https://user:hunter2@host/group/name.git"}}
notify: [{url: "https://hooks.example/abc"}]
"""


class FollowedRun:
    """A run, and what its folder holds for trackers. It begins with this process as its driver."""

    def __init__(self, home: Path) -> None:
        self.registry = RunRegistry(home / "gemfleet.db")
        self.folder = home / "runs" / RUN
        self.folder.mkdir(parents=True)
        self.registry.create_run(RUN, "run", "", os.getpid())
        (self.folder / "settled.yaml").write_text(SETTLED)

    def train(self, steps: Sequence[int]) -> None:
        """Report these steps of two ranks, and an evaluation after the last."""
        records: list[dict[str, Any]] = [
            {"kind": "step", "step": step, "time": 1000.0 + step, "loss": 1 / step, "memory_bytes": [step, 2 * step]}
            for step in steps
        ]
        scored = {"kind": "eval", "step": steps[-1], "time": 1001.0 + steps[-1], "eval_loss": 0.5}
        self.registry.add_metrics(RUN, [*records, {**scored, "eval_losses": {"a set (1)": 0.25}}])

    def publish(self) -> None:
        """End the run with a result."""
        output = self.folder / "output"
        output.mkdir(exist_ok=True)
        (output / "README.md").write_text("the card")
        (output / "adapter_model.safetensors").write_bytes(b"the adapter")
        self.registry.transition(RUN, RunState.SUCCEEDED)

    @contextmanager
    def followed(self, config: TrackerConfig) -> Iterator[None]:
        """Play the driver in the block, which leaves the records. Then follow them to the end, in this process."""
        reading, writing = os.pipe()
        yield
        os.close(writing)
        try:
            Follower(self.registry, RUN, config, reading).run()
        finally:
            os.close(reading)

    @property
    def tracker(self) -> TrackerState:
        (state,) = tracker_states(self.folder)
        return state

    def told(self) -> list[str]:
        """What events say of trackers."""
        return [event["message"] for event in self.registry.events(RUN) if event["kind"] == "tracker"]

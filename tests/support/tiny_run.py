"""Whole runs of a tiny model for tests: a user's folder, `gemfleet` as a process, and what it left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from gemfleet.cluster.registry.run_registry import RunRegistry
from support.tiny_model import save_tiny_gemma3
from support.tiny_tokenizer import tiny_tokenizer

WAIT_SECONDS = 240.0
STEPS_PER_EPOCH = 15
SAVE_EVERY = 4


def make_workplace(folder: Path) -> Path:
    """A user's folder: model, data, and modules of their own with the names of our folders."""
    save_tiny_gemma3(folder / "model")
    tiny_tokenizer(folder / "model")
    rows = [{"prompt": f"question {i} what ", "completion": f"answer {i % 7} cat"} for i in range(64)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "train.py").write_text("raise RuntimeError('the user\\'s own train.py was imported')\n")
    for name in ("launcher", "cluster"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(f"raise RuntimeError('the user\\'s own {name} was imported')\n")
    return folder


@contextmanager
def local_ray(cpus: int = 4) -> Iterator[str]:
    """The address of a cluster of this process with so many logical CPUs."""
    import ray

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = ray.init(address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=200 * 2**20)
    yield str(context.address_info["address"])
    ray.shutdown()


def gemfleet(workplace: Path, home: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command, started in `workplace`. It hears Ctrl-C, also where whoever started these tests does not."""
    environment = {**os.environ, "GEMFLEET_HOME": str(home), "OMP_NUM_THREADS": "1"}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "gemfleet.launcher.cli", *arguments],
            cwd=workplace,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)


def start(
    workplace: Path,
    home: Path,
    address: str,
    epochs: float = 1.0,
    overrides: tuple[str, ...] = (),
    options: tuple[str, ...] = (),
) -> subprocess.Popen[str]:
    """`gemfleet train` with two ranks, a checkpoint every `SAVE_EVERY` steps and 15 steps an epoch."""
    config = {
        "name": "tiny",
        "train": {
            "model": "./model",
            "data": {"train": "rows.jsonl", "max_length": 64},
            "batch": {"global": 4},
            "epochs": epochs,
            "optim": {"learning_rate": 1e-3},
            "precision": "fp32",
            "checkpoint": {"every": SAVE_EVERY},
        },
        "cluster": {"address": address, "workers": 2, "wait_for_resources_s": 30.0},
    }
    (workplace / "run.yaml").write_text(yaml.safe_dump(config))
    return gemfleet(workplace, home, "train", "run.yaml", *options, *(p for o in overrides for p in ("--set", o)))


def ends(process: subprocess.Popen[str], code: int = 0) -> str:
    """The output once the command has ended with this exit code."""
    try:
        output, _ = process.communicate(timeout=WAIT_SECONDS)
    finally:
        process.kill()
    assert process.returncode == code, output
    return output


def wait_for_step(home: Path, step: int, after: float = 0.0) -> RunRegistry:
    """The registry once the only run has done this many steps, reported later than the moment `after`."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if (home / "gemfleet.db").exists():
            registry = RunRegistry(home / "gemfleet.db")
            runs = registry.list_runs()
            newest = registry.latest_metrics(runs[0].id, "step") if runs else None
            if newest and newest["step"] >= step and newest["time"] > after:
                return registry
        time.sleep(0.1)
    raise AssertionError(f"step {step} was not reached")


def states(registry: RunRegistry, run_id: str) -> list[str]:
    return [event["data"]["state"] for event in registry.events(run_id) if event["kind"] == "state"]


def history(folder: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return entries


def trained_steps(folder: Path) -> list[int]:
    """Steps in the history of a checkpoint or a published adapter."""
    return [entry["step"] for entry in history(folder) if "loss" in entry]

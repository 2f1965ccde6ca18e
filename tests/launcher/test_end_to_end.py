"""The whole way on a local Ray cluster: `gemfleet train` with two ranks, stopped, and with a rank killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from gemfleet.cluster.run_registry import RunRegistry
from tiny_model import save_tiny_gemma3
from tiny_tokenizer import tiny_tokenizer

WAIT_SECONDS = 240.0


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: model, data, configuration, and modules of their own with the names of our folders."""
    folder = tmp_path_factory.mktemp("work")
    save_tiny_gemma3(folder / "model")
    tiny_tokenizer(folder / "model")
    rows = [{"prompt": f"question {i} what ", "completion": f"answer {i % 7} cat"} for i in range(64)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "train.py").write_text("raise RuntimeError('the user\\'s own train.py was imported')\n")
    for name in ("launcher", "cluster"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(f"raise RuntimeError('the user\\'s own {name} was imported')\n")
    return folder


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    """One cluster with four logical CPUs for all tests of this file."""
    import ray

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = ray.init(address="local", num_cpus=4, include_dashboard=False, object_store_memory=200 * 2**20)
    yield str(context.address_info["address"])
    ray.shutdown()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def start(
    workplace: Path, home: Path, address: str, epochs: float = 1.0, learning_rate: float = 1e-3
) -> subprocess.Popen[str]:
    config = {
        "name": "tiny",
        "train": {
            "model": "./model",
            "data": {"train": "rows.jsonl", "max_length": 64},
            "batch": {"global": 4},
            "epochs": epochs,
            "optim": {"learning_rate": learning_rate},
            "checkpoint": {"every": 4},
        },
        "cluster": {"address": address, "workers": 2, "wait_for_resources_s": 30.0},
    }
    (workplace / "run.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "gemfleet.launcher.cli", "train", "run.yaml"]
    environment = {**os.environ, "GEMFLEET_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=workplace, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ends(process: subprocess.Popen[str], code: int = 0) -> str:
    """The output once the command has ended with that exit code."""
    try:
        output, _ = process.communicate(timeout=WAIT_SECONDS)
    finally:
        process.kill()
    assert process.returncode == code, output
    return output


def wait_for_step(home: Path, step: int) -> RunRegistry:
    """The registry once the only run has done this many steps."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if (home / "gemfleet.db").exists():
            registry = RunRegistry(home / "gemfleet.db")
            runs = registry.list_runs()
            newest = registry.latest_metrics(runs[0].id, "step") if runs else None
            if newest and newest["step"] >= step:
                return registry
        time.sleep(0.2)
    raise AssertionError(f"step {step} was not reached")


def states(registry: RunRegistry, run_id: str) -> list[str]:
    return [event["data"]["state"] for event in registry.events(run_id) if event["kind"] == "state"]


def history(folder: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return entries


@pytest.mark.slow
def test_train_brings_everything_home(workplace: Path, home: Path, ray_address: str) -> None:
    output = ends(start(workplace, home, ray_address))
    registry = RunRegistry(home / "gemfleet.db")
    (run,) = registry.list_runs()
    folder = home / "runs" / run.id
    assert f"adapter: {folder / 'output'}" in output
    assert states(registry, run.id) == [
        *("queued", "preflight", "staging", "preparing_data", "training", "publishing", "succeeded")
    ]
    steps = [entry["step"] for entry in history(folder / "output") if "loss" in entry]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) == len(registry.metrics(run.id, kind="step")) == 15
    for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "training_config.json"):
        assert (folder / "output" / name).is_file()
    manifests = sorted(path.parent.name for path in folder.glob("checkpoints/*/manifest.json"))
    assert manifests == ["checkpoint-12", "checkpoint-15", "checkpoint-4", "checkpoint-8"]
    assert [entry["step"] for entry in registry.checkpoints(run.id)] == [4, 8, 12, 15]
    assert len(list(folder.glob("runs/*/events.out.tfevents.*"))) == 1
    assert "rank 1 on" in (folder / "logs" / "rank-1.log").read_text()


@pytest.mark.slow
def test_stop_leaves_a_checkpoint(workplace: Path, home: Path, ray_address: str) -> None:
    process = start(workplace, home, ray_address, epochs=400.0)
    registry = wait_for_step(home, 5)
    (run,) = registry.list_runs()
    registry.request_stop(run.id)
    assert "stopped after" in ends(process)
    assert states(registry, run.id)[-2:] == ["publishing", "stopped"]
    last = registry.checkpoints(run.id)[-1]["step"]
    newest = registry.latest_metrics(run.id, "step")
    assert newest is not None
    assert newest["step"] == last < newest["total_steps"]


@pytest.mark.slow
def test_a_killed_rank_goes_on_from_the_last_checkpoint(workplace: Path, home: Path, ray_address: str) -> None:
    process = start(workplace, home, ray_address, epochs=20.0)
    registry = wait_for_step(home, 9)
    (run,) = registry.list_runs()
    victim = registry.ranks(run.id)[1]
    os.kill(victim["pid"], signal.SIGKILL)
    ends(process)
    assert "restarting" in states(registry, run.id)
    assert states(registry, run.id)[-1] == "succeeded"
    assert "resumed from checkpoint-" in (home / "runs" / run.id / "logs" / "rank-0.log").read_text()
    steps = [entry["step"] for entry in history(home / "runs" / run.id / "output") if "loss" in entry]
    assert steps == list(range(1, 301))


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_and_code_130(workplace: Path, home: Path, ray_address: str) -> None:
    process = start(workplace, home, ray_address, epochs=400.0)
    registry = wait_for_step(home, 3)
    process.send_signal(signal.SIGINT)
    assert "stopping: a checkpoint is saved" in ends(process, code=130)
    (run,) = registry.list_runs()
    assert states(registry, run.id)[-1] == "stopped"
    assert registry.checkpoints(run.id)
    assert (home / "runs" / run.id / "output" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_the_run_with_code_1(workplace: Path, home: Path, ray_address: str) -> None:
    output = ends(start(workplace, home, ray_address, epochs=20.0, learning_rate=1e30), code=1)
    registry = RunRegistry(home / "gemfleet.db")
    (run,) = registry.list_runs()
    assert states(registry, run.id)[-1] == "failed"
    assert "Traceback" not in output
    assert "loss" in output
    assert f"the logs of all ranks are in {home / 'runs' / run.id / 'logs'}" in output

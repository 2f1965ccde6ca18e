"""`gemfleet train` on a local Ray cluster trains the same run under each strategy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_model import save_tiny_gemma3
from tiny_tokenizer import tiny_tokenizer

pytestmark = pytest.mark.slow
WAIT_SECONDS = 240.0
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "fsdp2": {"strategy": "fsdp2"},
    "zero-2": {"strategy": "deepspeed", "deepspeed": {"stage": 2}},
    "zero-3": {"strategy": "deepspeed", "deepspeed": {"stage": 3, "config": "zero.json"}},
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, rows of unequal lengths, and a DeepSpeed file beside the configuration."""
    folder = tmp_path_factory.mktemp("work")
    save_tiny_gemma3(folder / "model")
    tiny_tokenizer(folder / "model")
    rows = [{"prompt": "what " * (i % 5 + 1), "completion": f"answer {i % 7} cat"} for i in range(24)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    zero = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    (folder / "zero.json").write_text(json.dumps(zero))
    return folder


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    import ray

    context = ray.init(address="local", num_cpus=4, include_dashboard=False, object_store_memory=200 * 2**20)
    yield str(context.address_info["address"])
    ray.shutdown()


def losses(workplace: Path, home: Path, address: str, name: str) -> list[float]:
    """Train three examples a step on two ranks, so that ranks differ in passes; the published history's losses."""
    train = {
        "model": "model",
        "data": {"train": "rows.jsonl", "max_length": 24},
        "batch": {"global": 3},
        "optim": {"learning_rate": 2e-3},
        "precision": "fp32",
        **STRATEGIES[name],
    }
    config = {"train": train, "cluster": {"address": address, "workers": 2, "wait_for_resources_s": 60.0}}
    path = workplace / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [sys.executable, "-m", "gemfleet.launcher.cli", "train", str(path)],
        env={**os.environ, "GEMFLEET_HOME": str(home), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (output,) = home.glob(f"runs/{name}-*/output")
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.fixture(scope="module")
def expected(workplace: Path, tmp_path_factory: pytest.TempPathFactory, ray_address: str) -> list[float]:
    """The losses under DDP."""
    return losses(workplace, tmp_path_factory.mktemp("home"), ray_address, "ddp")


@pytest.mark.parametrize("name", ["fsdp2", "zero-2", "zero-3"])
def test_each_strategy_trains_the_same_through_ray(
    workplace: Path, tmp_path: Path, ray_address: str, expected: list[float], name: str
) -> None:
    found = losses(workplace, tmp_path, ray_address, name)
    print(f"\n{name}: loss {found[0]:.4f} -> {found[-1]:.4f} in {len(found)} steps", end="")
    assert len(expected) > 5
    assert found == pytest.approx(expected, abs=1e-4)

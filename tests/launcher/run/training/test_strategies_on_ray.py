"""`gemfleet train` on a local Ray cluster trains the same run under each strategy, and `auto` says what it chose."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from gemfleet.cluster.registry.run_registry import RunRegistry
from support.tiny_model import save_tiny_gemma3
from support.tiny_run import ends, gemfleet, history, local_ray
from support.tiny_tokenizer import tiny_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.long]
STRATEGIES: dict[str, dict[str, Any]] = {
    "auto": {},
    "fsdp2": {"strategy": "fsdp2"},
    "context": {"strategy": "fsdp2", "context_parallel": 2},
    "zero-3": {"strategy": "deepspeed", "deepspeed": {"stage": 3, "config": "zero.json"}},
}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Room for all of the runs at once: most of their time is waiting."""
    with local_ray(2 * len(STRATEGIES)) as address:
        yield address


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, address: str) -> Path:
    """A model, rows of unequal lengths, a DeepSpeed file beside the configurations, and one finished run of each.

    Three examples a step on two ranks, so that ranks differ in passes.
    """
    folder = tmp_path_factory.mktemp("work")
    save_tiny_gemma3(folder / "model")
    tiny_tokenizer(folder / "model")
    rows = [{"prompt": "what " * (i % 5 + 1), "completion": f"answer {i % 7} cat"} for i in range(24)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    zero = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    (folder / "zero.json").write_text(json.dumps(zero))
    runs = []
    for name, changes in STRATEGIES.items():
        train = {
            "model": "model",
            "data": {"train": "rows.jsonl", "max_length": 24},
            "batch": {"global": 3},
            "optim": {"learning_rate": 2e-3},
            "precision": "fp32",
            **changes,
        }
        cluster = {"address": address, "workers": 2, "wait_for_resources_s": 60.0}
        (folder / f"{name}.yaml").write_text(
            yaml.safe_dump({"train": train, "cluster": cluster, "api": {"enabled": False}})
        )
        runs.append(gemfleet(folder, folder / f"home-{name}", "train", f"{name}.yaml"))
    for run in runs:
        ends(run)
    return folder


def losses(workplace: Path, name: str) -> list[float]:
    (output,) = workplace.glob(f"home-{name}/runs/{name}-*/output")
    return [entry["loss"] for entry in history(output) if "loss" in entry]


def test_auto_is_settled_and_told(workplace: Path) -> None:
    registry = RunRegistry(workplace / "home-auto" / "gemfleet.db")
    (run,) = registry.list_runs()
    (event,) = [event for event in registry.events(run.id) if event["kind"] == "strategy"]
    assert event["message"].startswith("strategy for 2 ranks: ddp: the whole base fits on every rank")
    assert event["data"]["strategy"] == "ddp"
    assert event["data"]["fitting"][0] == "ddp"
    folder = workplace / "home-auto" / "runs" / run.id
    (planned,) = [event for event in registry.events(run.id) if event["kind"] == "batch_planned"]
    assert planned["message"].startswith("micro-batch 2 by the plan: a pass holds all rows")
    log = (folder / "logs" / "driver.log").read_text()
    assert event["message"] in log
    assert planned["message"] in log
    asked, (trained,) = folder / "config.resolved.yaml", folder.glob("checkpoints/*/training_config.json")
    assert settings(yaml.safe_load(asked.read_text())) == ("auto", "auto", "auto")
    assert settings(json.loads(trained.read_text())) == ("ddp", "off", 2)
    assert "finding_batch" not in [event["data"].get("state") for event in registry.events(run.id)]


def settings(config: dict[str, Any]) -> tuple[Any, ...]:
    train = config["train"]
    return train["strategy"], train["activation_checkpointing"], train["batch"]["micro"]


def test_layers_stay_gathered_where_that_fits(workplace: Path) -> None:
    registry = RunRegistry(workplace / "home-fsdp2" / "gemfleet.db")
    (run,) = registry.list_runs()
    (event,) = [event for event in registry.events(run.id) if event["kind"] == "strategy"]
    assert (event["data"]["strategy"], event["data"]["reshard_after_forward"]) == ("fsdp2", False)


@pytest.mark.parametrize("name", ["fsdp2", "context", "zero-3"])
def test_each_strategy_trains_the_same_through_ray(workplace: Path, name: str) -> None:
    found, expected = losses(workplace, name), losses(workplace, "auto")
    print(f"\n{name}: loss {found[0]:.4f} -> {found[-1]:.4f} in {len(found)} steps", end="")
    assert len(expected) > 5
    assert found == pytest.approx(expected, abs=1e-4)

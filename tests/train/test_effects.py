"""Each setting of the recipe changes what is trained: without one, its test fails."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.interfaces import WriteCheckpoint
from gemfleet.train.local.source import LocalBlockSource
from gemfleet.train.loop import Trainer
from gemfleet.train.model.gemma import attach_lora
from gemfleet.train.strategies import build_strategy
from support.reference_step import examples
from support.tiny_model import tiny_gemma3

BASELINE: dict[str, Any] = {
    "model": "tiny",
    "data": {"train": "x.jsonl", "max_length": 64},
    "lora": {"r": 4, "alpha": 8.0, "dropout": 0.0},
    "batch": {"global": 3, "micro": 4},
    "strategy": "ddp",
    "activation_checkpointing": "off",
    "optim": {
        "learning_rate": 0.01,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "schedule": "linear",
        "warmup_ratio": 0.3,
    },
    "epochs": 2.0,
    "seed": 1,
    "precision": "fp32",
    "evaluation": {"every": "epoch"},
    "checkpoint": {"every": "never"},
}
CHANGES: dict[str, dict[str, Any]] = {
    "learning rate": {"optim": {"learning_rate": 0.02}},
    "weight decay": {"optim": {"weight_decay": 0.1}},
    "gradient clipping": {"optim": {"max_grad_norm": 0.01}},
    "schedule": {"optim": {"schedule": "cosine"}},
    "warm-up": {"optim": {"warmup_ratio": 0.0}},
    "seed": {"seed": 2},
    "epochs": {"epochs": 1.0},
    "global batch": {"batch": {"global": 4}},
    "dropout": {"lora": {"dropout": 0.2}},
    "alpha": {"lora": {"alpha": 16.0}},
}


class Notes:
    """A reporter that keeps what it is told and saves nothing."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def progress(self, phase: str) -> None:
        """No watchdog here."""

    def log_step(self, record: Mapping[str, Any]) -> None:
        self.records.append(dict(record))

    def tell(self, kind: str, sentence: str, facts: Mapping[str, Any]) -> None:
        raise AssertionError("no events here")

    def save_checkpoint(self, step: int, write: WriteCheckpoint | None, metrics: Mapping[str, float]) -> None:
        self.records.append({"kind": "saved", "step": step})

    def finish(self) -> None:
        """Nothing is on its way."""

    def latest_checkpoint(self, destination: Path) -> Path | None:
        return None

    def should_stop(self) -> bool:
        return False


def changed(change: Mapping[str, Any]) -> TrainConfig:
    merged = {key: {**BASELINE[key], **value} if isinstance(value, dict) else value for key, value in change.items()}
    return TrainConfig.model_validate({**BASELINE, **merged})


def train(work: Path, **change: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """The adapters at the end, and what was reported."""
    config, notes = changed(change), Notes()
    batch = config.batch.global_
    source = LocalBlockSource(
        examples(), {"eval": examples(seed=1)}, global_batch=batch, max_length=64, seed=config.seed, world_size=1
    )
    model = attach_lora(tiny_gemma3().requires_grad_(False), config.lora, config.seed, "tiny")
    Trainer(config, model, build_strategy(config), source, notes, 0, work).run()
    return {name: p.detach().clone() for name, p in model.adapter_parameters().items()}, notes.records


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return train(tmp_path_factory.mktemp("baseline"))[0]


def test_the_same_settings_train_the_same(baseline: dict[str, torch.Tensor], tmp_path: Path) -> None:
    again, _ = train(tmp_path)
    assert all(torch.equal(again[name], value) for name, value in baseline.items())


@pytest.mark.parametrize("setting", CHANGES)
def test_a_setting_of_the_recipe_changes_the_adapters(
    baseline: dict[str, torch.Tensor], tmp_path: Path, setting: str
) -> None:
    adapters, _ = train(tmp_path, **CHANGES[setting])
    assert adapters.keys() == baseline.keys()
    assert any(not torch.equal(adapters[name], value) for name, value in baseline.items())


def test_rank_and_target_modules_decide_which_adapters_there_are(tmp_path: Path) -> None:
    adapters, _ = train(tmp_path, lora={"r": 2, "target_modules": ["q_proj", "down_proj"]}, epochs=1.0)
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in adapters} == {"q_proj", "down_proj"}
    assert {min(value.shape) for value in adapters.values()} == {2}


@pytest.mark.parametrize(
    ("every", "scored"), [("epoch", [0, 3, 6]), (2, [0, 2, 4, 6]), ("never", [0, 6])], ids=["epoch", "steps", "never"]
)
def test_the_evaluation_set_is_scored_when_it_is_asked_for(tmp_path: Path, every: Any, scored: list[int]) -> None:
    """Before the first step and after the last one in any case."""
    _, records = train(tmp_path, evaluation={"every": every})
    assert [record["step"] for record in records if record["kind"] == "eval"] == scored


def test_no_steps_at_all_score_the_base_and_save_nothing(tmp_path: Path) -> None:
    adapters, records = train(tmp_path, max_steps=0)
    assert all(not value.any() for name, value in adapters.items() if "lora_B" in name)
    assert [(record["kind"], record["step"]) for record in records] == [("eval", 0)]

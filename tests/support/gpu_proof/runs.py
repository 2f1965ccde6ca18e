"""Whole short runs through training's own loop, with checkpoints in a folder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gemfleet.benchmarks.training.rows import random_documents
from gemfleet.train.checkpoint.state import ADAPTER_FILE, OPTIMIZER_FILE
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.device.abilities import DeviceFacts
from gemfleet.train.interfaces import BlockSource
from gemfleet.train.local.source import LocalBlockSource
from gemfleet.train.loop import Trainer
from gemfleet.train.strategies.base import StateDict
from gemfleet.train.worker import prepare_model
from safetensors.torch import load_file
from support.gpu_proof.stage import Stage, initial_adapters
from support.strategy_cases import FolderReporter

STEPS, SAVED = 6, 3


@dataclass(frozen=True)
class Trained:
    """losses, norms: of each step that was taken; update: what training added to the adapters since the beginning.

    began: adapters and optimizer state before the first of these steps; saved: the folder of checkpoints
    """

    losses: list[float]
    norms: list[float]
    adapter: StateDict
    update: StateDict
    began: tuple[StateDict, StateDict]
    saved: Path


def train(stage: Stage, config: TrainConfig, name: str, facts: DeviceFacts | None = None) -> Trained:
    """Train from `initial_adapters`, or from the newest checkpoint of this name, to the last step."""
    model, strategy = prepare_model(config, stage.model_folder(), facts or stage.facts)
    initial = initial_adapters({name: p.shape for name, p in model.adapter_parameters().items()})
    folder = stage.folder / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    reporter = FolderReporter(folder)
    trainer = Trainer(config, model, strategy, source_of(stage, config), reporter, 0, folder)
    strategy.restore(initial, {})
    trainer.resume()
    began = strategy.gather_adapter(), strategy.gather_optimizer()
    trainer.train()
    trainer.save()
    adapter = strategy.gather_adapter()
    return Trained(
        [record["loss"] for record in reporter.records],
        [record["grad_norm"] for record in reporter.records],
        adapter,
        {name: values - initial[name] for name, values in adapter.items()},
        began,
        folder,
    )


def resumed(stage: Stage, config: TrainConfig, whole: Trained, name: str) -> Trained:
    """The second half of a run again, from the checkpoint in its middle."""
    place = stage.folder / "runs" / name
    shutil.copytree(whole.saved / f"checkpoint-{SAVED}", place / f"checkpoint-{SAVED}")
    return train(stage, config, name)


def saved_state(run: Trained) -> tuple[StateDict, StateDict]:
    """Adapters and optimizer state of the checkpoint in the middle, by the names that `Trained.began` has."""
    folder = run.saved / f"checkpoint-{SAVED}"
    adapter = load_file(folder / ADAPTER_FILE)
    return {name: adapter[name.replace(".default.", ".")] for name in run.adapter}, load_file(folder / OPTIMIZER_FILE)


def source_of(stage: Stage, config: TrainConfig) -> BlockSource:
    """As many documents as `STEPS` steps need, of lengths from one token to a row."""
    rng = np.random.default_rng(5)
    lengths = rng.integers(1, config.data.max_length, STEPS * config.batch.global_) // rng.choice(
        [1, 3, 9], STEPS * config.batch.global_
    )
    block = random_documents(stage.shape.vocabulary, np.maximum(lengths, 1).tolist(), 1)
    return LocalBlockSource(
        block,
        {},
        global_batch=config.batch.global_,
        max_length=config.data.max_length,
        seed=config.seed,
        world_size=1,
    )

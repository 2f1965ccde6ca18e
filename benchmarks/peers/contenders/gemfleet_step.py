"""gemfleet's own training loop, unchanged, on one rank: only its data source and its reporter are the benchmark's."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gemfleet.train.config.schema import (
    BatchConfig,
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    LoraConfig,
    OptimConfig,
    TrainConfig,
)
from gemfleet.train.device.abilities import choose_dtype, current_device
from gemfleet.train.interfaces import PackedRows, StepRows, WriteCheckpoint
from gemfleet.train.loop import Trainer
from gemfleet.train.model.gemma import attach_lora, load_base_model
from gemfleet.train.strategies import build_strategy

from ..adapter import load_initial_adapter
from ..clock import StepClock
from ..data import Batch, batch_supervised_tokens, batch_tokens
from ..task import Task

DEFAULT_MAX_LENGTH = 1024


def train(task: Task, clock: StepClock) -> None:
    """One optimizer step per batch, its examples laid end to end in one row."""
    config = train_config(task)
    facts = current_device(local_rank=0)
    base = load_base_model(task.model_folder, choose_dtype(config.precision, facts), facts.device)
    model = attach_lora(base, config.lora, config.seed, base_name=config.model)
    load_initial_adapter(model.peft_model, task.adapter_file)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            config,
            model,
            build_strategy(config),
            source=FixedBatches(task.batches),
            reporter=ClockReporter(clock),
            rank=0,
            work_folder=Path(folder),
        )
        clock.start()
        trainer.run()


def train_config(task: Task) -> TrainConfig:
    """The recipe in gemfleet's own terms."""
    recipe = task.recipe
    return TrainConfig(
        model=str(task.model_folder),
        data=DataConfig(
            train="in memory",
            eval_fraction=0.0,
            max_length=max(DEFAULT_MAX_LENGTH, *(batch_tokens(batch) for batch in task.batches)),
        ),
        lora=LoraConfig(
            r=recipe.lora_r, alpha=float(recipe.lora_alpha), dropout=0.0, target_modules=list(recipe.target_modules)
        ),
        batch=BatchConfig(global_=len(task.batches[0]), micro=1),
        strategy="ddp",
        activation_checkpointing="off",
        optim=OptimConfig(
            learning_rate=recipe.learning_rate,
            schedule="constant",
            warmup_ratio=0.0,
            weight_decay=recipe.weight_decay,
            betas=recipe.betas,
            eps=recipe.eps,
            max_grad_norm=recipe.max_grad_norm,
        ),
        max_steps=len(task.batches),
        precision=recipe.precision,
        evaluation=EvalConfig(every="never"),
        checkpoint=CheckpointConfig(every="never"),
        seed=recipe.seed,
    )


def packed_row(batch: Batch) -> PackedRows:
    """The batch's examples as the documents of a single row."""
    supervised = [np.arange(example.tokens) >= max(example.supervised_from, 1) for example in batch]
    return PackedRows(
        tokens=np.concatenate([np.asarray(example.input_ids, dtype=np.int32) for example in batch]),
        supervised=np.concatenate(supervised),
        document_lengths=np.asarray([example.tokens for example in batch], dtype=np.int32),
        row_documents=np.asarray([len(batch)], dtype=np.int32),
    )


class FixedBatches:
    """A BlockSource of one epoch whose steps are the task's batches."""

    has_eval = False

    def __init__(self, batches: tuple[Batch, ...]) -> None:
        self.batches = batches
        self.steps_per_epoch = len(batches)

    def step(self, epoch: int, step_in_epoch: int, rank: int) -> StepRows:
        """The examples of that step; there is one epoch and one rank."""
        batch = self.batches[step_in_epoch]
        return StepRows(packed_row(batch), len(batch), batch_tokens(batch), batch_supervised_tokens(batch))

    def eval_rows(self, rank: int) -> PackedRows:
        """None, as the comparison evaluates nothing."""
        return packed_row(())


class ClockReporter:
    """A Reporter that ends a step on the clock and keeps nothing."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def progress(self, phase: str) -> None:
        """Nobody watches."""

    def log_step(self, record: Mapping[str, Any]) -> None:
        """The loop calls this after the optimizer's update."""
        if record["kind"] == "step":
            self.clock.step_done(record["loss"])

    def save_checkpoint(self, step: int, write: WriteCheckpoint | None, metrics: Mapping[str, float]) -> None:
        """The state after the last step is copied, outside every timed step, and dropped."""

    def finish(self) -> None:
        """Nothing is under way."""

    def latest_checkpoint(self, destination: Path) -> Path | None:
        """Every contender starts afresh."""
        return None

    def should_stop(self) -> bool:
        """Never before the last step."""
        return False

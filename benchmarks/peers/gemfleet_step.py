"""gemfleet's own training loop, unchanged, on one rank: only its data source and its reporter are the benchmark's."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from gemfleet.benchmarks.shared.seams import FixedSteps, StepReporter
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.device.abilities import choose_dtype, current_device
from gemfleet.train.interfaces import PackedRows, StepRows
from gemfleet.train.loop import Trainer
from gemfleet.train.model.gemma import attach_lora, load_base_model
from gemfleet.train.strategies import build_strategy

from .adapter import load_initial_adapter
from .data import Batch, batch_supervised_tokens, batch_tokens
from .task import StepClock, Task

DEFAULT_MAX_LENGTH = 1024


def train(task: Task, clock: StepClock) -> None:
    """One optimizer step per batch, its examples laid end to end in one row."""
    config = train_config(task)
    facts = current_device(local_rank=0)
    base = load_base_model(task.model_folder, choose_dtype(config.precision, facts), facts.device)
    model = attach_lora(base, config.lora, config.seed, base_name=config.model)
    load_initial_adapter(model.peft_model, task.adapter_file)
    source = FixedSteps(len(task.batches), lambda step, rank: step_rows(task.batches[step]))
    # The state after the last step is copied, outside every timed step, and dropped.
    reporter = StepReporter(lambda record: clock.step_done(record["loss"]))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, model, build_strategy(config), source, reporter, 0, Path(folder))
        clock.start()
        trainer.run()


def train_config(task: Task) -> TrainConfig:
    """The recipe in gemfleet's own terms."""
    recipe, longest = task.recipe, max(batch_tokens(batch) for batch in task.batches)
    optim = {name: getattr(recipe, name) for name in ("learning_rate", "weight_decay", "betas", "eps", "max_grad_norm")}
    lora = {"r": recipe.lora_r, "alpha": float(recipe.lora_alpha), "target_modules": list(recipe.target_modules)}
    return TrainConfig.model_validate(
        {
            "model": str(task.model_folder),
            "data": {"train": "in memory", "eval_fraction": 0.0, "max_length": max(DEFAULT_MAX_LENGTH, longest)},
            "lora": {**lora, "dropout": 0.0},
            "batch": {"global": len(task.batches[0]), "micro": 1},
            "strategy": "ddp",
            "activation_checkpointing": "off",
            "optim": {**optim, "schedule": "constant", "warmup_ratio": 0.0},
            "max_steps": len(task.batches),
            "precision": recipe.precision,
            "evaluation": {"every": "never"},
            "checkpoint": {"every": "never"},
            "seed": recipe.seed,
        }
    )


def step_rows(batch: Batch) -> StepRows:
    """The batch's examples as the documents of a single row."""
    supervised = [np.arange(example.tokens) >= max(example.supervised_from, 1) for example in batch]
    rows = PackedRows(
        tokens=np.concatenate([np.asarray(example.input_ids, dtype=np.int32) for example in batch]),
        supervised=np.concatenate(supervised),
        document_lengths=np.asarray([example.tokens for example in batch], dtype=np.int32),
        row_documents=np.asarray([len(batch)], dtype=np.int32),
    )
    return StepRows(rows, len(batch), batch_tokens(batch), batch_supervised_tokens(batch))

"""The contenders that are loops: gemfleet's own, unchanged, and the one anyone would write first."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gemfleet.benchmarks.shared.seams import FixedSteps, StepReporter
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.device.abilities import choose_dtype, current_device, keep_freed_memory
from gemfleet.train.interfaces import PackedRows, StepRows
from gemfleet.train.kernels.capabilities import choose
from gemfleet.train.loop import Trainer
from gemfleet.train.model.gemma import attach_lora, load_base_model, prepare_layers
from gemfleet.train.strategies import build_strategy

from .data import Batch, batch_supervised_tokens, batch_tokens
from .task import StepClock, Task, contender, load_initial_adapter, lora_config

DEFAULT_MAX_LENGTH = 1024


@contender
def train_gemfleet(task: Task, clock: StepClock) -> None:
    """One rank; each batch's examples are laid end to end in one row."""
    keep_freed_memory()
    config = train_config(task)
    facts = current_device(local_rank=0)
    base = load_base_model(task.model_folder, choose_dtype(config.precision, facts), facts.device)
    model = attach_lora(base, config.lora, config.seed, base_name=config.model)
    load_initial_adapter(model.peft_model, task.adapter_file)
    prepare_layers(model, choose(config, facts.device, base.dtype))
    source = FixedSteps(len(task.batches), lambda step, rank: step_rows(task.batches[step]))
    # The state after the last step is copied, outside every timed step, and dropped.
    reporter = StepReporter(lambda record: clock.step_done(record["loss"]))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, model, build_strategy(config), source, reporter, 0, Path(folder))
        clock.start()
        trainer.run()


def train_config(task: Task) -> TrainConfig:
    """The recipe in gemfleet's own terms."""
    recipe, longest, never = task.recipe, max(batch_tokens(batch) for batch in task.batches), {"every": "never"}
    optim = {name: getattr(recipe, name) for name in ("learning_rate", "weight_decay", "betas", "eps", "max_grad_norm")}
    lora = {"r": recipe.lora_r, "alpha": float(recipe.lora_alpha), "target_modules": list(recipe.target_modules)}
    fixed = {"strategy": "ddp", "activation_checkpointing": "off", "evaluation": never, "checkpoint": never}
    return TrainConfig.model_validate(
        {
            **fixed,
            "model": str(task.model_folder),
            "data": {"train": "in memory", "eval_fraction": 0.0, "max_length": max(DEFAULT_MAX_LENGTH, longest)},
            "lora": {**lora, "dropout": 0.0},
            "batch": {"global": len(task.batches[0]), "micro": 1},
            "optim": {**optim, "schedule": "constant", "warmup_ratio": 0.0},
            "max_steps": len(task.batches),
            "precision": recipe.precision,
            "seed": recipe.seed,
        }
    )


def step_rows(batch: Batch) -> StepRows:
    """The batch's examples as the documents of a single row."""
    rows = PackedRows(
        tokens=np.concatenate([np.asarray(example.input_ids, np.int32) for example in batch]),
        supervised=np.concatenate([np.asarray(example.labels) != -100 for example in batch]),
        document_lengths=np.asarray([example.tokens for example in batch], np.int32),
        row_documents=np.asarray([len(batch)], np.int32),
    )
    return StepRows(rows, len(batch), batch_tokens(batch), batch_supervised_tokens(batch))


@contender
def train_plain(task: Task, clock: StepClock) -> None:
    """Padded batch, full logits, transformers' own loss, AdamW."""
    recipe, model = task.recipe, load_peft_model(task)
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rate, decay = recipe.learning_rate, recipe.weight_decay
    optimizer = torch.optim.AdamW(parameters, rate, recipe.betas, recipe.eps, weight_decay=decay)
    clock.start()
    for batch in task.batches:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.precision == "bf16"):
            loss = model(**pad(batch)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.step_done(loss.item())


def load_peft_model(task: Task) -> Any:
    """The base model in the recipe's precision, with the shared initial adapter (fp32, peft's default)."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if task.recipe.precision == "bf16" else torch.float32
    base = AutoModelForCausalLM.from_pretrained(task.model_folder, dtype=dtype)
    base.config.use_cache = False
    model = get_peft_model(base, lora_config(task.recipe))
    load_initial_adapter(model, task.adapter_file)
    return model


def pad(batch: Batch) -> dict[str, torch.Tensor]:
    """int64 [B, longest] input_ids, attention_mask and labels (-100 off target), padded on the right."""

    def padded(rows: list[torch.Tensor], value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    tokens = [torch.tensor(example.input_ids) for example in batch]
    labels = [torch.tensor(example.labels) for example in batch]
    mask = padded([torch.ones_like(row) for row in tokens], 0)
    return {"input_ids": padded(tokens, 0), "attention_mask": mask, "labels": padded(labels, -100)}

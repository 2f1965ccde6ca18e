"""TRL's SFTTrainer: as it comes, packed, and packed with every setting that makes it faster on this kind of machine.

TRL's loss never builds the full logits since 1.x (`loss_type="nll"`), so all three modes have it.
"""

from __future__ import annotations

import tempfile
from typing import Any

import datasets
import trl

from .adapter import load_initial_adapter, lora_config
from .data import batch_tokens
from .hf_trainer import shared_arguments, with_clock
from .task import StepClock, Task

DEFAULT_MAX_LENGTH = 1024


def train_default(task: Task, clock: StepClock) -> None:
    """Only the batch, LoRA, precision, rate, seed and step count are given; prompt and completion go in as text."""
    examples = [example for batch in task.batches for example in batch]
    rows = datasets.Dataset.from_list([{"prompt": item.prompt, "completion": item.completion} for item in examples])
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(task, rows, shared_arguments(task, folder))
        # TRL tokenised the text itself: unless it got the same tokens and targets, the speeds are not comparable.
        for example, row in zip(examples, trainer.train_dataset, strict=True):
            if list(example.input_ids) != row["input_ids"] or example.labels != row["labels"]:
                raise RuntimeError(f"TRL tokenised the prompt {example.prompt!r} differently")
        with_clock(trainer, clock).train()


def train_packed(task: Task, clock: StepClock) -> None:
    """Packing by best-fit decreasing, which makes TRL padding-free; the rest as it comes."""
    _train_packed(task, clock, {})


def train_best(task: Task, clock: StepClock) -> None:
    """Packing; weights held in bf16 instead of cast at each use; activations kept instead of computed twice."""
    _train_packed(
        task,
        clock,
        {"gradient_checkpointing": False, "model_init_kwargs": {"dtype": _dtype_name(task)}},
    )


def _train_packed(task: Task, clock: StepClock, settings: dict[str, Any]) -> None:
    """TRL packs a whole data set at once, which changes the examples of a step. Packing each batch by itself, into one
    row, keeps the steps comparable and does TRL no harm: padding-free, it lays all rows of a step end to end anyway."""
    row_length = max(DEFAULT_MAX_LENGTH, *(batch_tokens(batch) for batch in task.batches))
    packed = []
    for batch in task.batches:
        rows = datasets.Dataset.from_list([{"input_ids": list(e.input_ids), "labels": e.labels} for e in batch])
        packed.append(trl.pack_dataset(rows, row_length, "bfd"))
    with tempfile.TemporaryDirectory() as folder:
        arguments = shared_arguments(task, folder) | {
            "packing": True,
            "max_length": row_length,
            "per_device_train_batch_size": 1,
            "dataset_kwargs": {"skip_prepare_dataset": True},
            **settings,
        }
        trainer = _trainer(task, datasets.concatenate_datasets(packed), arguments)
        with_clock(trainer, clock).train()


def _trainer(task: Task, rows: datasets.Dataset, arguments: dict[str, Any]) -> Any:
    trainer = trl.SFTTrainer(
        model=str(task.model_folder),
        args=trl.SFTConfig(**arguments),
        train_dataset=rows,
        peft_config=lora_config(task.recipe),
    )
    load_initial_adapter(trainer.model, task.adapter_file)
    return trainer


def _dtype_name(task: Task) -> str:
    return "bfloat16" if task.recipe.precision == "bf16" else "float32"

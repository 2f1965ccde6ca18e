"""The contenders that are trainers of others: transformers' Trainer, and TRL's SFTTrainer in three modes.

TRL's loss never builds the full logits since 1.x (`loss_type="nll"`), so all three modes have it.
"""

from __future__ import annotations

import tempfile
from typing import Any

import datasets
from transformers import TrainerCallback

from .data import batch_tokens
from .loops import DEFAULT_MAX_LENGTH, load_peft_model
from .task import StepClock, Task, contender, load_initial_adapter, lora_config


@contender
def train_transformers(task: Task, clock: StepClock) -> None:
    """Padded batches, with its own optimizer, collator and loss."""
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(task.model_folder, padding_side="right")
    rows = [
        {"input_ids": list(example.input_ids), "labels": example.labels, "attention_mask": [1] * example.tokens}
        for batch in task.batches
        for example in batch
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(**shared_arguments(task, folder))
        data = {"train_dataset": datasets.Dataset.from_list(rows), "data_collator": DataCollatorForSeq2Seq(tokenizer)}
        train_timed(Trainer(model=load_peft_model(task), args=arguments, **data), clock)


@contender
def train_trl_default(task: Task, clock: StepClock) -> None:
    """Only the batch, LoRA, precision, rate, seed and step count are given; prompt and completion go in as text."""
    examples = [example for batch in task.batches for example in batch]
    rows = datasets.Dataset.from_list([{"prompt": item.prompt, "completion": item.completion} for item in examples])
    with tempfile.TemporaryDirectory() as folder:
        trainer = _sft_trainer(task, rows, shared_arguments(task, folder))
        # TRL tokenised the text itself: unless it got the same tokens and targets, the speeds are not comparable.
        for example, row in zip(examples, trainer.train_dataset, strict=True):
            if list(example.input_ids) != row["input_ids"] or example.labels != row["labels"]:
                raise RuntimeError(f"TRL tokenised the prompt {example.prompt!r} differently")
        train_timed(trainer, clock)


@contender
def train_trl_packed(task: Task, clock: StepClock) -> None:
    """Packing by best-fit decreasing, which makes TRL padding-free; the rest as it comes."""
    _train_packed(task, clock)


@contender
def train_trl_best(task: Task, clock: StepClock) -> None:
    """Packing; weights held in bf16 instead of cast at each use; activations kept instead of computed twice."""
    dtype = "bfloat16" if task.recipe.precision == "bf16" else "float32"
    _train_packed(task, clock, gradient_checkpointing=False, model_init_kwargs={"dtype": dtype})


def _train_packed(task: Task, clock: StepClock, **settings: Any) -> None:
    """TRL packs a whole data set at once, which changes the examples of a step. Packing each batch by itself, into one
    row, keeps the steps comparable and does TRL no harm: padding-free, it lays all rows of a step end to end anyway."""
    import trl

    row_length = max(DEFAULT_MAX_LENGTH, *(batch_tokens(batch) for batch in task.batches))
    packed = []
    for batch in task.batches:
        rows = datasets.Dataset.from_list([{"input_ids": list(e.input_ids), "labels": e.labels} for e in batch])
        packed.append(trl.pack_dataset(rows, row_length, "bfd"))
    own: dict[str, Any] = {"packing": True, "max_length": row_length, "per_device_train_batch_size": 1}
    own["dataset_kwargs"] = {"skip_prepare_dataset": True}
    with tempfile.TemporaryDirectory() as folder:
        arguments = {**shared_arguments(task, folder), **own, **settings}
        train_timed(_sft_trainer(task, datasets.concatenate_datasets(packed), arguments), clock)


def _sft_trainer(task: Task, rows: datasets.Dataset, arguments: dict[str, Any]) -> Any:
    import trl

    given = {"args": trl.SFTConfig(**arguments), "train_dataset": rows, "peft_config": lora_config(task.recipe)}
    trainer = trl.SFTTrainer(model=str(task.model_folder), **given)
    load_initial_adapter(trainer.model, task.adapter_file)
    return trainer


class ClockCallback(TrainerCallback):  # type: ignore[misc]
    """Starts the clock with training, after all set-up, and ends a step after the optimizer's update."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock
        self.loss: Any = None

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.clock.start()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.clock.step_done(float(self.loss))


def train_timed(trainer: Any, clock: StepClock) -> None:
    """Train by a `transformers.Trainer`; its own `training_step` returns the loss, which no callback gets."""
    callback, training_step = ClockCallback(clock), trainer.training_step

    def recorded(*args: Any, **kwargs: Any) -> Any:
        loss = training_step(*args, **kwargs)
        callback.loss = loss.detach()
        return loss

    trainer.training_step = recorded
    trainer.add_callback(callback)
    trainer.train()


def shared_arguments(task: Task, output_folder: str) -> dict[str, Any]:
    """The recipe in TrainingArguments' names, and nothing written or reported anywhere. `sequential` keeps the batches
    in their fixed order. All else stays at the trainer's defaults."""
    recipe = task.recipe
    given = {name: getattr(recipe, name) for name in ("learning_rate", "weight_decay", "max_grad_norm", "seed")}
    given |= {"adam_beta1": recipe.betas[0], "adam_beta2": recipe.betas[1], "adam_epsilon": recipe.eps}
    steps: dict[str, Any] = {"per_device_train_batch_size": len(task.batches[0]), "max_steps": len(task.batches)}
    steps |= {"lr_scheduler_type": "constant", "train_sampling_strategy": "sequential", "use_cpu": True}
    quiet = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False}
    return {**given, **steps, **quiet, "bf16": recipe.precision == "bf16", "output_dir": output_folder}

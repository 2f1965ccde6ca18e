"""transformers.Trainer on padded batches, with its own optimizer, collator and loss; and how its steps are timed."""

from __future__ import annotations

import tempfile
from typing import Any

from transformers import TrainerCallback

from .plain import load_peft_model
from .task import StepClock, Task


def train(task: Task, clock: StepClock) -> None:
    """One optimizer step per batch."""
    import datasets
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(task.model_folder, padding_side="right")
    rows = [
        {"input_ids": list(example.input_ids), "labels": example.labels, "attention_mask": [1] * example.tokens}
        for batch in task.batches
        for example in batch
    ]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=load_peft_model(task),
            args=TrainingArguments(**shared_arguments(task, folder)),
            train_dataset=datasets.Dataset.from_list(rows),
            data_collator=DataCollatorForSeq2Seq(tokenizer),
        )
        with_clock(trainer, clock).train()


class ClockCallback(TrainerCallback):  # type: ignore[misc]
    """Starts the clock with training and ends a step after the optimizer's update."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock
        self.loss: Any = None

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Everything before this is set-up."""
        self.clock.start()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """The optimizer has stepped."""
        self.clock.step_done(float(self.loss))


def with_clock(trainer: Any, clock: StepClock) -> Any:
    """Attach the clock to a `transformers.Trainer`; its own `training_step` returns the loss, which no callback gets."""
    callback = ClockCallback(clock)
    training_step = trainer.training_step

    def recorded(*args: Any, **kwargs: Any) -> Any:
        loss = training_step(*args, **kwargs)
        callback.loss = loss.detach()
        return loss

    trainer.training_step = recorded
    trainer.add_callback(callback)
    return trainer


def shared_arguments(task: Task, output_folder: str) -> dict[str, Any]:
    """The settings of the recipe in TrainingArguments' names, and nothing written or reported anywhere.

    `sequential` keeps the batches in their fixed order. All else stays at the trainer's defaults.
    """
    recipe = task.recipe
    return {
        "output_dir": output_folder,
        "per_device_train_batch_size": len(task.batches[0]),
        "max_steps": len(task.batches),
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "adam_beta1": recipe.betas[0],
        "adam_beta2": recipe.betas[1],
        "adam_epsilon": recipe.eps,
        "bf16": recipe.precision == "bf16",
        "seed": recipe.seed,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }

"""transformers.Trainer on padded batches, with its own optimizer, collator and loss."""

from __future__ import annotations

import tempfile

from ..clock import StepClock
from ..task import Task
from .plain import load_peft_model
from .trainer_clock import shared_arguments, with_clock


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

"""The loop anyone would write first: padded batch, full logits, transformers' own loss, AdamW."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from .adapter import load_initial_adapter, lora_config
from .data import Batch
from .task import Recipe, StepClock, Task


def train(task: Task, clock: StepClock) -> None:
    """One optimizer step per batch."""
    recipe = task.recipe
    model = load_peft_model(task)
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, recipe.learning_rate, recipe.betas, recipe.eps, weight_decay=recipe.weight_decay
    )
    clock.start()
    for batch in task.batches:
        with autocast(recipe):
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


def autocast(recipe: Recipe) -> AbstractContextManager[Any]:
    """bf16 arithmetic where the recipe asks for it."""
    if recipe.precision == "fp32":
        return nullcontext()
    return torch.autocast("cpu", dtype=torch.bfloat16)


def pad(batch: Batch) -> dict[str, torch.Tensor]:
    """int64 [B, longest] input_ids, attention_mask and labels (-100 off target), padded on the right."""
    longest = max(example.tokens for example in batch)
    shape = (len(batch), longest)
    input_ids = torch.zeros(shape, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, -100)
    for row, example in enumerate(batch):
        input_ids[row, : example.tokens] = torch.tensor(example.input_ids)
        attention_mask[row, : example.tokens] = 1
        labels[row, : example.tokens] = torch.tensor(example.labels)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

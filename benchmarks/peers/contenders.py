"""The table of contenders, each a function `train(task, clock)` that is imported only in the process that runs it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from .task import StepClock, Task, Tell


class Contender(NamedTuple):
    """Where a contender's function lives, and one line on what it does."""

    module: str
    function: str
    summary: str

    @property
    def needs_trl(self) -> bool:
        return self.function.startswith("train_trl")


TRL_BEST = "TRL SFTTrainer, packing, bf16 weights, no activation checkpointing"
CONTENDERS = {
    "gemfleet": Contender("loops", "train_gemfleet", "packed rows, loss at supervised positions only, in chunks"),
    "trl-default": Contender("trainers", "train_trl_default", "TRL SFTTrainer with its defaults"),
    "trl-packed": Contender("trainers", "train_trl_packed", "TRL SFTTrainer, packing (bfd, padding-free)"),
    "trl-best": Contender("trainers", "train_trl_best", TRL_BEST),
    "transformers-trainer": Contender("trainers", "train_transformers", "transformers Trainer, padded, full logits"),
    "plain": Contender("loops", "train_plain", "PyTorch loop, padded, full logits; the reference for losses"),
}


def run_contender(values: Mapping[str, Any], tell: Tell) -> None:
    """One contender in this process. values: its name as `contender`, and a task as `task`."""
    import torch
    from gemfleet.train.device.memory import peak_resident_bytes

    task, contender = Task.model_validate(values["task"]), CONTENDERS[values["contender"]]
    torch.set_num_threads(task.threads)
    train = getattr(importlib.import_module(f".{contender.module}", __package__), contender.function)
    train(task, StepClock(tell))
    tell({"facts": {"peak_rss_bytes": peak_resident_bytes()}})

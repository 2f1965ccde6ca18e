"""The table of contenders, each a function `train(task, clock)` that is imported only in the process that runs it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .task import StepClock, Task, Tell


@dataclass(frozen=True)
class Contender:
    """Where a contender's function lives, and one line on what it does."""

    module: str
    function: str
    summary: str

    @property
    def needs_trl(self) -> bool:
        return self.module == "trl_sft"


CONTENDERS = {
    "gemfleet": Contender("gemfleet_step", "train", "packed rows, loss at supervised positions only, in chunks"),
    "trl-default": Contender("trl_sft", "train_default", "TRL SFTTrainer with its defaults"),
    "trl-packed": Contender("trl_sft", "train_packed", "TRL SFTTrainer, packing (bfd, padding-free)"),
    "trl-best": Contender(
        "trl_sft", "train_best", "TRL SFTTrainer, packing, bf16 weights, no activation checkpointing"
    ),
    "transformers-trainer": Contender("hf_trainer", "train", "transformers Trainer, padded, full logits"),
    "plain": Contender("plain", "train", "PyTorch loop, padded, full logits; the reference for losses"),
}


def run_contender(values: Mapping[str, Any], tell: Tell) -> None:
    """One contender in this process. values: its name as `contender`, and a task as `task`."""
    import torch
    from gemfleet.train.device.memory import peak_resident_bytes

    task, contender = Task.model_validate(values["task"]), CONTENDERS[values["contender"]]
    torch.set_num_threads(task.threads)
    module = importlib.import_module(f".{contender.module}", __package__)
    getattr(module, contender.function)(task, StepClock(tell))
    tell({"facts": {"peak_rss_bytes": peak_resident_bytes()}})

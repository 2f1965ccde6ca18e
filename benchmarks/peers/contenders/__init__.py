"""The table of contenders. Each is a function `train(task, clock)`, imported only in the process that runs it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from ..clock import StepClock
from ..task import Task

Train = Callable[[Task, StepClock], None]


@dataclass(frozen=True)
class Contender:
    """Where a contender's function lives, and one line on what it does."""

    module: str
    function: str
    summary: str
    needs_trl: bool = False


CONTENDERS = {
    "gemfleet": Contender("gemfleet_step", "train", "packed rows, loss at supervised positions only, in chunks"),
    "trl-default": Contender("trl_sft", "train_default", "TRL SFTTrainer with its defaults", needs_trl=True),
    "trl-packed": Contender("trl_sft", "train_packed", "TRL SFTTrainer, packing (bfd, padding-free)", needs_trl=True),
    "trl-best": Contender(
        "trl_sft", "train_best", "TRL SFTTrainer, packing, bf16 weights, no activation checkpointing", needs_trl=True
    ),
    "transformers-trainer": Contender("hf_trainer", "train", "transformers Trainer, padded, full logits"),
    "plain": Contender("plain", "train", "PyTorch loop, padded, full logits; the reference for losses"),
}


def load_contender(name: str) -> Train:
    """Import the function of a contender."""
    contender = CONTENDERS[name]
    module = importlib.import_module(f".{contender.module}", __package__)
    function: Train = getattr(module, contender.function)
    return function

"""What the history of a run says, as `trainer_state.json` holds it: a mapping for each step and each evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

History = Sequence[Mapping[str, Any]]


def mean_loss_since_last(history: History, loss: float) -> float:
    """The mean of this step's loss and of those in the history after its newest `mean_loss`."""
    losses = [loss]
    for entry in reversed(history):
        if "mean_loss" in entry:
            break
        losses += [entry["loss"]] if "loss" in entry else []
    return math.fsum(losses) / len(losses)


def losses_at(history: History, step: int) -> dict[str, float]:
    """The `loss` and `eval_loss` of the newest step, as far as there are any, for the checkpoint's manifest."""
    newest = list(takewhile(lambda entry: entry["step"] == step, reversed(history)))
    return {key: entry[key] for entry in reversed(newest) for key in ("loss", "eval_loss") if key in entry}


def evaluation_losses(history: History, metric: str = "eval_loss") -> list[tuple[int, float]]:
    """The step and loss of each evaluation, the oldest first. metric: `eval_loss`, or `eval_NAME_loss` of one set"""
    return [(entry["step"], entry[metric]) for entry in history if metric in entry]


def best_evaluation(history: History) -> tuple[int, float] | None:
    """The step and loss of the lowest finite evaluation loss after the first step, the earliest of equals; else None.

    The evaluation before the first step scores what training began with, and no checkpoint is of it.
    """
    found = [(step, loss) for step, loss in evaluation_losses(history) if step and math.isfinite(loss)]
    return min(found, key=lambda evaluation: evaluation[1], default=None)


def told_early_end(history: History) -> str | None:
    """Why training ended early, if it did so after the newest step. It is the history's last entry then."""
    sentence = history[-1].get("stopped_early") if history else None
    return None if sentence is None else str(sentence)


def last_evaluated_step(history: History) -> int | None:
    """The step of the newest evaluation; None if there is none."""
    return next((entry["step"] for entry in reversed(history) if "eval_loss" in entry), None)

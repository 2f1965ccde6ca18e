"""What the history of a run says, as `trainer_state.json` holds it: a mapping for each step and each evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
    entries = [entry for entry in history[-2:] if entry["step"] == step]
    return {key: entry[key] for entry in entries for key in ("loss", "eval_loss") if key in entry}


def last_evaluated_step(history: History) -> int | None:
    """The step of the newest evaluation; None if there is none."""
    return next((entry["step"] for entry in reversed(history) if "eval_loss" in entry), None)

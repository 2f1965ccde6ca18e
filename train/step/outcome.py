"""How training ended, as rank 0 tells it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .history import History, best_evaluation, evaluation_losses

UNCHANGED = (
    "the adapter is what it was before training: no step changed it, so it adds nothing to what it began with; look at "
    "train.optim.learning_rate and train.lora"
)


@dataclass(frozen=True)
class TrainResult:
    """How training ended. A loss is the mean over supervised tokens; None if there is none.

    eval_loss: over the evaluation set; train_loss: the mean of all steps' losses
    adapter_changed: False if no step since the start, or since the last resume, changed the adapters
    stopped_early: why training ended before its last step, see `early_end`; best_step: of the lowest evaluation loss
    """

    steps: int
    total_steps: int
    stopped: bool
    eval_loss_before: float | None
    eval_loss: float | None
    train_loss: float | None
    adapter_changed: bool = True
    stopped_early: str | None = None
    best_step: int | None = None

    @classmethod
    def of(
        cls,
        history: History,
        steps: int,
        total_steps: int,
        stopped: bool,
        adapter_changed: bool = True,
        stopped_early: str | None = None,
    ) -> TrainResult:
        """The result of a run that did `steps` of `total_steps`, with its losses from the history."""
        evaluations = [loss for _, loss in evaluation_losses(history)]
        best = best_evaluation(history)
        losses = [entry["loss"] for entry in history if "loss" in entry]
        return cls(
            steps=steps,
            total_steps=total_steps,
            stopped=stopped,
            eval_loss_before=evaluations[0] if evaluations else None,
            eval_loss=evaluations[-1] if evaluations else None,
            train_loss=math.fsum(losses) / len(losses) if losses else None,
            adapter_changed=adapter_changed,
            stopped_early=stopped_early,
            best_step=best[0] if best else None,
        )

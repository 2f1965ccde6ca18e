"""Decides from a run's history whether training ends before its last step.

It is a pure function of the history, which checkpoints hold, so a resumed run counts on. All ranks decide alike: a loss
in the history is a sum over ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..config.schema import TrainConfig
from ..config.sections.recipe import EarlyStoppingConfig
from ..errors import UserError
from .history import History, evaluation_losses


def refuse_unknown_metric(train: TrainConfig, eval_sets: Sequence[str]) -> None:
    """Raises UserError if early stopping looks at a set that turned out to have no examples."""
    problem = None if train.early_stopping is None else train.early_stopping.problem(eval_sets)
    if problem:
        raise UserError(problem)


def early_end(history: History, config: EarlyStoppingConfig | None, total_steps: int) -> str | None:
    """A sentence if the newest evaluations say that training ends; None if it goes on, and without early stopping.

    The evaluation before the first step does not count. An infinite loss, or one that is no number, is no lower one.
    """
    if config is None:
        return None
    lowest, lowest_step, step, waited = math.inf, 0, 0, 0
    for step, loss in evaluation_losses(history, config.metric):
        if not step:
            continue
        if loss < lowest - config.min_delta:
            lowest, lowest_step, waited = loss, step, 0
        else:
            waited += 1
    if waited < config.patience:
        return None
    by = f" by more than {config.min_delta:g}" if config.min_delta else ""
    best = f" below {lowest:.4f} of step {lowest_step}" if lowest_step else ""
    times = "1 evaluation" if waited == 1 else f"{waited} evaluations"
    return f"stopped early at step {step} of {total_steps}: {config.metric} did not fall{by}{best} in {times}"

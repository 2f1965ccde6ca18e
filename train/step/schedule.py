"""When things are due, and the learning rate.

The learning rate is a pure function of the step, so a resumed run needs no scheduler state.

The shapes are those of transformers' `get_scheduler` (a test compares every step). Warm-up lasts `ceil(ratio * steps)`
steps. It is one step ahead of transformers', whose first update has a learning rate of zero.
"""

from __future__ import annotations

import math

from ..config.sections.recipe import Interval, OptimConfig


def is_due(every: Interval, step: int, steps_per_epoch: int) -> bool:
    """Whether an event with this interval is due after so many steps."""
    if every == "never":
        return False
    return step % (steps_per_epoch if every == "epoch" else every) == 0


def warmup_steps(optim: OptimConfig, total_steps: int) -> int:
    return 0 if optim.schedule == "constant" else math.ceil(optim.warmup_ratio * total_steps)


def learning_rate_at(step: int, total_steps: int, optim: OptimConfig) -> float:
    """The learning rate of the optimizer step with index `step` (from 0), of `total_steps`."""
    warmup = warmup_steps(optim, total_steps)
    if step < warmup:
        return optim.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    if optim.schedule == "linear":
        return optim.learning_rate * max(0.0, 1.0 - progress)
    if optim.schedule == "cosine":
        return optim.learning_rate * max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
    return optim.learning_rate

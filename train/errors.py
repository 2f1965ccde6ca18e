"""Errors for the person who started the run: one sentence that names the field, the value and the remedy."""

from __future__ import annotations

import math

EXIT_BAD_INPUT = 2  # of a command that a UserError ends


class UserError(ValueError):
    """A mistake that the user can correct. Commands print its sentence without a traceback, and exit with code 2."""


class NonFiniteLossError(RuntimeError):
    """The loss or the gradient is NaN or infinite. All ranks raise it at the same step, before anything is saved."""

    def __init__(self, step: int, loss: float, grad_norm: float) -> None:
        super().__init__(step, loss, grad_norm)
        self.step, self.loss, self.grad_norm = step, loss, grad_norm

    def __str__(self) -> str:
        return (
            f"step {self.step}: the loss is {self.loss} and the gradient norm {self.grad_norm}; nothing was "
            "saved after the step before. Lower optim.learning_rate, or look for a damaged row in the data"
        )


def refuse_non_finite(step: int, loss: float, grad_norm: float) -> None:
    """Raises NonFiniteLossError before the update. All ranks have the same sums, so all raise at the same step."""
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise NonFiniteLossError(step, loss, grad_norm)


def first_line(error: BaseException) -> str:
    """The first line of a library's error, for use in a sentence of ours."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

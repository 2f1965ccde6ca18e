"""Judges what was computed of a published form and of the training loop: their logits and their greedy answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

# The largest difference of two logits that is rounding, as a share of the largest logit, by the coarsest numbers on the
# way: those of the computation, or those in which the merged weights are stored. Sums in another order differ by some
# units of the last place, more with every layer. Measured on the real 270M: 2e-6 in fp32, 2e-2 in bf16 (5e-3 by bf16
# weights alone). fp16 has three bits more than bf16.
BOUNDS = {
    torch.float32: 1e-3,
    torch.float16: 1e-2,
    torch.bfloat16: 8e-2,
}
# Smaller logits have bounds as if they were of this size: tiny random models, whose largest logit is about 1, differ in
# bf16 by up to 0.11.
LEAST_LOGIT = 2.0
NAMES = {"adapter": "adapter", "merged": "merged model"}
NEAR_TIE = 2.0  # two logits may each move by the bound, so answers may part where they lie within twice of it
Tokens = tuple[int, ...]


@dataclass(frozen=True)
class FormComparison:
    """A published form beside the training loop.

    form:       `adapter`, as peft loads it, or `merged`
    difference: the largest difference of two logits; largest: the largest logit of the loop
    bound:      what rounding may cause; None where the loop's base was quantised and this form's is not
    equal:      how many answers are the loop's; margin: how far apart, by the loop, the tokens are where one parts
    """

    form: str
    difference: float
    largest: float
    bound: float | None
    equal: int
    margin: float

    def problem(self, prompts: int) -> str:
        """What differs by more than rounding, in a sentence; empty if nothing does."""
        if self.bound is None:
            return ""
        what = f"the published {NAMES[self.form]}"
        if not self.difference <= self.bound:
            return (
                f"{what} computes other logits than the training loop: they differ by up to "
                f"{self.difference:.3g}, where rounding explains {self.bound:.3g}"
            )
        if not self.margin <= NEAR_TIE * self.bound:
            return (
                f"{what} gives {prompts - self.equal} of {prompts} greedy answers otherwise than "
                f"the training loop, to which the tokens are {self.margin:.3g} apart where they part; rounding "
                f"explains {NEAR_TIE * self.bound:.3g}"
            )
        return ""


@dataclass(frozen=True)
class Comparison:
    """All forms of one result beside the training loop.

    prompts: how many; source: where they are from; tokens: of all answers; dtype: of the computation
    other: a sentence where peft takes another adapter than the file's, else empty
    """

    prompts: int
    source: str
    tokens: int
    dtype: str
    forms: tuple[FormComparison, ...]
    other: str = ""

    @property
    def problems(self) -> list[str]:
        """What differs by more than rounding."""
        return [self.other] * bool(self.other) + [p for form in self.forms if (p := form.problem(self.prompts))]

    def to_dict(self) -> dict[str, Any]:
        """The content of comparison.json."""
        return asdict(self)

    def describe(self) -> str:
        """One line for the log."""
        parts = [
            f"{form.form}: logits differ by up to {form.difference:.2g} of {form.largest:.3g}, "
            f"{form.equal} of {self.prompts} greedy answers are equal"
            for form in self.forms
        ]
        return f"compared with the training loop in {self.dtype}: " + "; ".join(parts)


@dataclass(frozen=True)
class Scored:
    """What a form computes: its greedy answers, and its logits where the last tokens of each text are predicted.

    answers: the new tokens of each prompt, to the end of the answer; logits: fp32 [tokens, vocabulary] of each prompt
    """

    answers: list[Tokens]
    logits: list[Tensor]


def told(answer: Tokens, logits: Tensor) -> Tokens:
    """The loop's greedy answer, as far as its logits on another's `answer` tell: to the first token that is another.

    logits: [tokens, vocabulary] where the last tokens of the text are predicted, which end with the answer
    """
    best = logits[len(logits) - len(answer) :].argmax(1).tolist()
    parting = next((at for at, (own, other) in enumerate(zip(best, answer, strict=True)) if own != other), None)
    return answer if parting is None else (*answer[:parting], best[parting])


def parting(answer: Tokens, scored: Tokens, logits: Tensor) -> float | None:
    """How much the loop prefers its own token where `answer` parts from its answer; None where they are the same.

    scored: the answer that the loop's logits are of. Infinite if one answer ends where the other goes on.
    """
    own = told(scored, logits)
    for at, (mine, other) in enumerate(zip(own, answer, strict=False)):
        if mine != other:
            row = logits[len(logits) - len(scored) + at]
            return float(row[mine] - row[other])
    ends_elsewhere = len(answer) < len(own) or (own == scored and len(answer) > len(own))
    return math.inf if ends_elsewhere else None


def beside(
    form: str, found: Scored, answers: Sequence[Tokens], loop: Sequence[Tensor], bound: float | None
) -> FormComparison:
    """Compares a form with the loop. answers: those that `loop`'s logits are of; bound: as a share of a logit"""
    pairs = zip(found.logits, loop, strict=True)
    difference = float(torch.stack([(own - of_loop).abs().max() for own, of_loop in pairs]).max())
    largest = float(torch.stack([logits.abs().max() for logits in loop]).max())
    margins = [parting(*three) for three in zip(found.answers, answers, loop, strict=True)]
    parted = [margin for margin in margins if margin is not None]
    limit = None if bound is None else bound * max(largest, LEAST_LOGIT)
    return FormComparison(form, difference, largest, limit, len(margins) - len(parted), max(parted, default=0.0))

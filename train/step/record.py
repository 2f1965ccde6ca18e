"""The figures of an optimizer step and of an evaluation. Every other list of figures is made of this one.

TensorBoard's curves, the API's schema, Prometheus' gauges, the board and the records of the training suites read the
descriptions of these fields. A new figure is one field here. A `derived` one needs no other change.

Three counts of tokens are never mixed: raw tokens (all that the model computes, padding too), tokens (text), and
supervised tokens (those that the loss scores). Rates divide by the time of the whole step, which includes waiting for
data, accumulation, communication and the optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar

from .figure import Chart, Figure, derived, figures, measured


@dataclass(frozen=True, kw_only=True)
class Record:
    """The fields that a step and an evaluation share: the position of the run."""

    KIND: ClassVar[str]

    step: int = measured("steps", "Optimizer steps done.")
    total_steps: int = measured("steps", "Optimizer steps of the whole run.")
    epoch: float = measured("epochs", "Epochs done.")
    epochs: float = measured("epochs", "Epochs of the whole run.")
    kind: str = derived("", "`step` for an optimizer step, `eval` for an evaluation.", lambda record: record.KIND)

    def __post_init__(self) -> None:
        for one in fields(self):
            formula = one.metadata["figure"].formula
            if formula is not None:
                object.__setattr__(self, one.name, formula(self))

    def to_dict(self) -> dict[str, Any]:
        """Keys and values for JSON, in the order of the fields. A field that is None by default is left out if None."""
        values = ((one, getattr(self, one.name)) for one in fields(self))
        return {one.name: value for one, value in values if value is not None or one.default is MISSING}


@dataclass(frozen=True, kw_only=True)
class StepRecord(Record):
    """One optimizer step, over all ranks unless a field says otherwise."""

    KIND = "step"

    loss: float = measured(
        "nats/token",
        "Training loss of the step: the mean cross-entropy of its supervised tokens.",
        over_run="mean",
        curve=True,
        chart=Chart("Loss", "training", from_zero=False, compared=True),
        tile="Loss",
        gauge="loss",
    )
    grad_norm: float = measured(
        "1",
        "Norm of the adapters' gradients before they are clipped.",
        curve=True,
        chart=Chart("Gradient norm", "before clipping"),
        suites=True,
    )
    learning_rate: float = measured(
        "1",
        "Learning rate of the step.",
        curve=True,
        chart=Chart("Learning rate", "learning rate"),
        gauge="learning_rate",
    )
    mean_loss: float | None = measured(
        "nats/token", "Mean loss since it was logged last; only in steps that log it.", default=None, curve=True
    )
    step_seconds: float = measured(
        "s", "Wall time of the optimizer step.", over_run="median", curve=True, gauge="step_seconds", suites=True
    )
    data_wait_seconds: float = measured(
        "s",
        "Time that the step waited for data; part of step_seconds.",
        over_run="median",
        curve=True,
        chart=Chart("Waits of a step", "for data", stacked=True),
        gauge="data_wait_seconds",
        suites=True,
    )
    checkpoint_wait_seconds: float = measured(
        "s",
        "Time that saving held training up since the step before; not part of step_seconds.",
        over_run="median",
        curve=True,
        chart=Chart("Waits of a step", "for a checkpoint", stacked=True),
        gauge="checkpoint_wait_seconds",
        suites=True,
    )
    raw_tokens: int = measured("tokens", "Tokens that were computed, padding among them.", suites=True)
    tokens: int = measured("tokens", "Tokens of text, without padding.", suites=True)
    supervised_tokens: int = measured("tokens", "Tokens that the loss scores.", suites=True)
    padding_share: float = derived(
        "1",
        "Share of padding among the tokens that were computed, 0 to 1.",
        lambda step: 1 - step.tokens / step.raw_tokens,
        over_run="median",
        curve=True,
        tile="Padding",
        gauge="padding_ratio",
        suites=True,
    )
    world_size: int = measured("ranks", "Ranks, the worker processes of the run.", over_run="newest", gauge="ranks")
    peak_memory_bytes: int = measured(
        "bytes",
        "Highest memory of rank 0 so far: on its GPU, or its resident set where there is none.",
        over_run="max",
        curve=True,
        gauge="peak_memory_bytes",
    )
    flops: float = measured(
        "FLOP", "FLOPs that LoRA needs for these documents, without recomputation and padding.", suites=True
    )
    recomputed_flops: float = measured("FLOP", "FLOPs that activation checkpointing adds.", suites=True)
    pictures: int = measured("pictures", "Pictures in the step's rows.", default=0, suites=True)
    tower_flops: float = measured(
        "FLOP", "FLOPs of the vision tower in the step: none for pictures whose features are kept.", default=0.0
    )
    rated_flops_per_second: float | None = measured(
        "FLOP/s", "What one rank's device can compute by its data sheet; null where there is none."
    )
    raw_tokens_per_second: float = derived(
        "tokens/s",
        "Computed tokens per second over all ranks, padding among them.",
        lambda step: step.raw_tokens / step.step_seconds,
        over_run="median",
        suites=True,
    )
    tokens_per_second: float = derived(
        "tokens/s",
        "Tokens of text per second over all ranks, without padding.",
        lambda step: step.tokens / step.step_seconds,
        over_run="median",
        curve=True,
        chart=Chart("Tokens per second", "all ranks", compared=True),
        tile="Tokens/s",
        gauge="tokens_per_second",
        suites=True,
    )
    supervised_tokens_per_second: float = derived(
        "tokens/s",
        "Supervised tokens per second over all ranks.",
        lambda step: step.supervised_tokens / step.step_seconds,
        over_run="median",
        curve=True,
        suites=True,
    )
    tokens_per_second_per_rank: float = derived(
        "tokens/s",
        "Tokens of text per second of one rank, on average.",
        lambda step: step.tokens / step.step_seconds / step.world_size,
        over_run="median",
        curve=True,
        suites=True,
    )
    pictures_per_second: float = derived(
        "pictures/s",
        "Pictures per second over all ranks.",
        lambda step: step.pictures / step.step_seconds,
        over_run="median",
        curve=True,
    )
    flops_per_second_per_rank: float = derived(
        "FLOP/s",
        "FLOPs per second of one rank that LoRA needs, without recomputation and padding.",
        lambda step: step.flops / step.step_seconds / step.world_size,
        over_run="median",
        curve=True,
        gauge="rank_flops",
        suites=True,
    )
    mfu: float | None = derived(
        "1",
        "Model FLOPs utilisation, 0 to 1; null where the device has no data sheet.",
        lambda step: step.utilisation_by(step.flops),
        over_run="median",
        curve=True,
        gauge="mfu_ratio",
    )
    hfu: float | None = derived(
        "1",
        "FLOPs utilisation with what was recomputed, 0 to 1; null where the device has no data sheet.",
        lambda step: step.utilisation_by(step.flops + step.recomputed_flops),
        over_run="median",
        curve=True,
        gauge="hfu_ratio",
    )
    memory_bytes: Sequence[int] = measured(
        "bytes",
        "Memory in use on each rank's GPU, or its resident set where there is none.",
        per_rank=True,
        over_run="newest",
        curve=True,
        chart=Chart("Memory of each rank"),
        gauge="gpu_memory_bytes",
    )
    memory_total_bytes: Sequence[int] = measured(
        "bytes",
        "Memory of each rank's GPU, or of its node where there is none.",
        per_rank=True,
        over_run="newest",
        gauge="gpu_memory_limit_bytes",
    )
    utilisation: Sequence[float | None] = measured(
        "1",
        "Use of each rank's GPU, or of its cores where there is none, 0 to 1; null where no counter tells.",
        per_rank=True,
        over_run="newest",
        curve=True,
        chart=Chart("Utilisation of each rank"),
        gauge="gpu_utilisation_ratio",
    )
    seconds_left: float = measured("s", "Estimated time to the last step.", gauge="eta_seconds")
    examples: int = measured("examples", "Examples of the step.")

    def utilisation_by(self, flops: float) -> float | None:
        """The share of the FLOPs that the devices could compute in this time by their data sheets; None without one."""
        if self.rated_flops_per_second is None:
            return None
        return flops / (self.step_seconds * self.world_size * self.rated_flops_per_second)


@dataclass(frozen=True, kw_only=True)
class EvalRecord(Record):
    """One evaluation, over all ranks."""

    KIND = "eval"

    eval_loss: float = measured(
        "nats/token",
        "Mean cross-entropy of all evaluation sets' supervised tokens; null where it is infinite.",
        curve=True,
        chart=Chart("Loss", "evaluation", from_zero=False),
        tile="Evaluation loss",
        gauge="eval_loss",
    )
    eval_losses: Mapping[str, float] | None = measured(
        "nats/token",
        "The evaluation loss of each set, by its name; only where there are several.",
        default=None,
        per_set=True,
        curve=True,
        chart=Chart("Loss", from_zero=False),
        gauge="eval_set_loss",
    )
    eval_runtime: float = measured("s", "Wall time of the evaluation.")
    eval_perplexity: float = derived(
        "1", "The exponential of eval_loss.", lambda scored: math.exp(min(scored.eval_loss, 700.0)), curve=True
    )


STEP_FIGURES = figures(StepRecord)
FIGURES: tuple[Figure, ...] = (*STEP_FIGURES, *figures(EvalRecord))


def spoken_loss(record: Mapping[str, Any]) -> str:
    """The loss of an evaluation for a person: `1.9021`; `1.9021 (chat 1.8000, code 2.1000)` of several sets."""
    sets = ", ".join(f"{name} {value:.4f}" for name, value in (record.get("eval_losses") or {}).items())
    return f"{record['eval_loss']:.4f}" + (f" ({sets})" if sets else "")


CURVES = tuple(found for found in FIGURES if found.curve)
# How a figure of a run that has ended is made of its steps, by the figure's name: `mean`, `median` or `max`.
OVER_RUN = {found.name: str(found.over_run) for found in STEP_FIGURES if found.over_run in ("mean", "median", "max")}
SUITE_FIGURES = tuple(found.name for found in STEP_FIGURES if found.suites)


def points(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """TensorBoard's tags and values of one record; `<tag>/rank-<n>` or `<tag>/<set>` for a figure with several."""
    for figure in CURVES:
        for name, value in figure.values(record):
            tag = (
                figure.tag
                if name is None
                else f"{figure.tag}/rank-{name}"
                if figure.per_rank
                else f"{figure.tag}/{name}"
            )
            yield tag, value

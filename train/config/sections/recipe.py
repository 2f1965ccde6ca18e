"""The parts of the `train` section that decide what is computed: adapters, optimizer, and when to look and to save."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator

from ..strict import MOST, StrictModel

Schedule = Literal["linear", "cosine", "constant", "constant_with_warmup"]
Interval = Literal["epoch", "never"] | Annotated[int, Field(gt=0)]


class LoraConfig(StrictModel):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), which peft places."""

    r: Annotated[int, Field(gt=0, le=MOST, description="rank of the update matrices")] = 16
    alpha: Annotated[float, Field(gt=0, description="the update is scaled by alpha / r")] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1, description="dropout on the adapter's input")] = 0.0
    target_modules: Annotated[
        Literal["all-linear"] | list[str],
        Field(
            description="`all-linear`: every linear layer of the language model, without lm_head and the vision tower; "
            "or a list of module names, never lm_head"
        ),
    ] = "all-linear"

    @field_validator("target_modules")
    @classmethod
    def _names_layers(cls, value: str | list[str]) -> str | list[str]:
        names = [value] if isinstance(value, str) else value
        if not names or not all(names):
            raise ValueError(
                f"found {value}, which names no module; give `all-linear` or a list as in [q_proj, v_proj]"
            )
        if any(name.rpartition(".")[2] == "lm_head" for name in names):
            raise ValueError("found `lm_head`, whose weight is the embedding's too and cannot be merged; leave it out")
        return value


class OptimConfig(StrictModel):
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) and its schedule."""

    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    schedule: Schedule = "linear"
    warmup_ratio: Annotated[float, Field(ge=0, le=1, description="share of all steps spent warming up")] = 0.03
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: Annotated[tuple[float, float], Field(strict=False)] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    max_grad_norm: Annotated[float, Field(ge=0, description="clip the global gradient norm here; 0: do not clip")] = 1.0

    @field_validator("betas")
    @classmethod
    def _are_decays(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError(f"found {list(value)}; give two numbers of at least 0 and less than 1, as in [0.9, 0.999]")
        return value


class CheckpointConfig(StrictModel):
    """When a rank saves the full state. It also saves at the end of training and when it is stopped."""

    every: Annotated[Interval, Field(description="`epoch`, `never`, or a number of optimizer steps")] = "epoch"
    best: Annotated[
        bool,
        Field(description="save too after an evaluation that is the best so far; not where `every` is `never`"),
    ] = True


class EvalConfig(StrictModel):
    """When ranks score the evaluation set. They also score it before the first step and after the last one."""

    every: Annotated[Interval, Field(description="`epoch`, `never`, or a number of optimizer steps")] = "epoch"
    micro: Annotated[
        int | None, Field(gt=0, le=MOST, description="packed rows one rank scores in one pass; null: as batch.micro")
    ] = None


class EarlyStoppingConfig(StrictModel):
    """When training ends before its last step: once the evaluation loss does not fall any more."""

    patience: Annotated[int, Field(gt=0, le=MOST, description="evaluations in a row without a lower loss that end it")]
    min_delta: Annotated[
        float, Field(ge=0, description="a loss counts as lower if it is by more than this below the lowest so far")
    ] = 0.0
    metric: Annotated[
        str,
        Field(pattern=r"^eval_(.+_)?loss$", description="`eval_loss`, or `eval_NAME_loss` of one of several sets"),
    ] = "eval_loss"

    def problem(self, sets: Sequence[str]) -> str | None:
        """Why the loss cannot be known with these evaluation sets, in a sentence with the remedy; None if it can."""
        if not sets:
            return "train.early_stopping needs an evaluation set; give train.data.eval, or an eval_fraction above 0"
        if self.metric in (names := loss_names(sets)):
            return None
        return f"train.early_stopping.metric is {self.metric}, which no evaluation measures; give {' or '.join(names)}"


def loss_names(sets: Sequence[str]) -> list[str]:
    """What evaluations of these sets measure: `eval_loss`, and of each of several sets `eval_NAME_loss`."""
    return ["eval_loss", *(f"eval_{name}_loss" for name in sets if len(sets) > 1)]


class LoggingConfig(StrictModel):
    """When the log gets a line with the mean loss since the last such line. Each step's own loss is always recorded."""

    every: Annotated[Interval, Field(description="`epoch`, `never`, or a number of optimizer steps")] = "epoch"

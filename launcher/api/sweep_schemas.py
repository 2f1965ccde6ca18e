"""What the API answers about sweeps, and how it is made from where a sweep stands."""

from __future__ import annotations

from typing import Annotated, Literal

from gemfleet.launcher.runs.sweep_view import SweepView, TrialView
from pydantic import BaseModel, Field

from .redaction import redact, redact_text


class Evaluation(BaseModel):
    """One evaluation of a trial."""

    step: int
    value: Annotated[float | None, Field(description="null where it is infinite")]


class SweepTrial(BaseModel):
    """One trial, which is a run of its own."""

    number: Annotated[int, Field(examples=[1])]
    run_id: Annotated[str, Field(description="of its run, which is there once it has begun", examples=["lr-001"])]
    settings: Annotated[dict[str, str], Field(description="by field, the value that `--set` takes")]
    status: Annotated[str, Field(description="of its run; or `waiting`, or `pruned`", examples=["training"])]
    reason: str
    step: int
    total_steps: int
    value: Annotated[float | None, Field(description="the lowest evaluation loss after the first step")]
    best_step: Annotated[int | None, Field(description="the step of that evaluation")]
    evaluations: list[Evaluation]


class SweepSummary(BaseModel):
    """A sweep as it appears in the list."""

    id: Annotated[str, Field(examples=["lr-20260102-030405-1a2b"])]
    object: Literal["sweep"] = "sweep"
    name: str
    status: Literal["running", "finished", "stopped", "interrupted"]
    metric: Annotated[str, Field(description="what is compared; the lowest is the best", examples=["eval_loss"])]
    created_at: int
    wanted: Annotated[int, Field(description="the number of trials", examples=[6])]
    ended: Annotated[int, Field(description="how many of them have succeeded, failed, or were stopped or pruned")]
    best: Annotated[SweepTrial | None, Field(description="of the lowest value so far")]


class SweepDetail(SweepSummary):
    """A sweep and its trials so far."""

    fields: Annotated[list[str], Field(description="what differs between trials", examples=[["train.lora.r"]])]
    sampler: Literal["grid", "random", "tpe"]
    prune: bool
    trials: list[SweepTrial]


class SweepList(BaseModel):
    """The newest sweeps first."""

    object: Literal["list"] = "list"
    data: list[SweepSummary]


def sweep_summary(view: SweepView) -> SweepSummary:
    return SweepSummary.model_validate(_summary(view))


def sweep_detail(view: SweepView) -> SweepDetail:
    sweep = view.sweep
    more = {"fields": sweep.fields, "sampler": sweep.sampler, "prune": sweep.prune}
    return SweepDetail.model_validate(_summary(view) | more | {"trials": [_trial(one) for one in view.trials]})


def _summary(view: SweepView) -> dict[str, object]:
    sweep = view.sweep
    return {
        "id": sweep.id,
        "name": sweep.name,
        "status": view.state,
        "metric": sweep.metric,
        "created_at": int(sweep.created_at),
        "wanted": sweep.wanted,
        "ended": len(view.ended),
        "best": _trial(view.best) if view.best else None,
    }


def _trial(trial: TrialView) -> SweepTrial:
    return SweepTrial(
        number=trial.number,
        run_id=trial.run_id,
        settings=redact(trial.settings),
        status=trial.state,
        reason=redact_text(trial.reason),
        step=trial.step,
        total_steps=trial.total_steps,
        value=redact(trial.value),
        best_step=trial.best_step,
        evaluations=[Evaluation(step=step, value=redact(value)) for step, value in trial.evaluations],
    )

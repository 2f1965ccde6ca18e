"""When training ends early: as transformers' callback says, counted over what a resumed run already had."""

from __future__ import annotations

import math
from typing import Any

import pytest
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.config.sections.recipe import EarlyStoppingConfig
from gemfleet.train.step.early_stopping import early_end
from hypothesis import given, settings
from hypothesis import strategies as st


def history(losses: list[float], metric: str = "eval_loss") -> list[dict[str, Any]]:
    """An evaluation before the first step, and one after each step."""
    evaluations = [{"step": step, metric: loss} for step, loss in enumerate([1e-9, *losses])]
    return [entry for scored in evaluations for entry in ({"step": scored["step"], "loss": 1.0}, scored)]


def end_of(losses: list[float], config: EarlyStoppingConfig) -> int | None:
    """The number of evaluations after which training ends."""
    counts = range(1, len(losses) + 1)
    return next((n for n in counts if early_end(history(losses[:n]), config, 99)), None)


@settings(deadline=None)
@given(st.lists(st.sampled_from([1.0, 1.5, 2.0, math.inf, math.nan]), max_size=9), st.integers(1, 4))
def test_it_ends_where_transformers_does(later: list[float], patience: int) -> None:
    """Apart from a first loss that is infinite, which they take for a best one."""
    from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments

    losses = [1.5, *later]
    args = TrainingArguments(metric_for_best_model="eval_loss", greater_is_better=False, use_cpu=True)
    callback, state, control = EarlyStoppingCallback(patience), TrainerState(), TrainerControl()
    theirs = None
    for number, loss in enumerate(losses, 1):
        callback.check_metric_value(args, state, control, loss)
        if callback.early_stopping_patience_counter >= patience and theirs is None:
            theirs = number
        if state.best_metric is None or loss < state.best_metric:
            state.best_metric = loss
    assert end_of(losses, EarlyStoppingConfig(patience=patience)) == theirs


@pytest.mark.parametrize(
    ("losses", "options", "end"),
    [
        ([3.0, 2.0, 2.5, 2.4], {"patience": 2}, 4),
        ([3.0, 2.9, 2.8, 2.7], {"patience": 2, "min_delta": 0.5}, 3),
        ([3.0, 2.9, 2.4, 2.3], {"patience": 2, "min_delta": 0.5}, None),
        ([math.nan, math.inf, 2.0], {"patience": 3}, None),
        ([math.nan, math.inf, math.nan], {"patience": 3}, 3),
        ([], {"patience": 1}, None),
    ],
)
def test_the_least_change_counts_from_the_lowest(losses: list[float], options: dict[str, Any], end: int | None) -> None:
    assert end_of(losses, EarlyStoppingConfig(**options)) == end


def test_the_sentence_and_the_metric_of_one_set() -> None:
    config = EarlyStoppingConfig(patience=2, metric="eval_chat_loss")
    assert early_end(history([2.0, 1.0, 1.5, 1.2], "eval_chat_loss"), config, 200) == (
        "stopped early at step 4 of 200: eval_chat_loss did not fall below 1.0000 of step 2 in 2 evaluations"
    )
    assert early_end(history([2.0, 1.0, 1.5, 1.2]), config, 200) is None


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"evaluation": {"every": "never"}}, r"train\.evaluation\.every is never"),
        ({"data": {"train": "a.jsonl", "eval_fraction": 0.0}}, "needs an evaluation set"),
        ({"early_stopping": {"patience": 1, "metric": "eval_a_loss"}}, "give eval_loss"),
        (
            {"data": {"train": ["a.jsonl", "b.jsonl"]}, "early_stopping": {"patience": 1, "metric": "eval_c_loss"}},
            "give eval_loss or eval_a_loss or eval_b_loss",
        ),
    ],
)
def test_what_can_never_end_a_run_is_refused(changes: dict[str, Any], problem: str) -> None:
    values = {"model": "m", "data": {"train": "a.jsonl"}, "early_stopping": {"patience": 1}}
    TrainConfig.model_validate(values)
    with pytest.raises(ValueError, match=problem):
        TrainConfig.model_validate({**values, **changes})

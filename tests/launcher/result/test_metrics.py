"""Corpus metrics of answers, in scripts other than Latin too."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import ray.exceptions
from gemfleet.launcher.result.answered_pictures import small_pictures
from gemfleet.launcher.result.metrics import prediction_metrics
from gemfleet.train.model.predict import Prediction, Question


def answers(*pairs: tuple[str, str]) -> list[Prediction]:
    return [Prediction("?", reference, prediction) for reference, prediction in pairs]


def test_equal_answers_are_perfect_and_others_are_not() -> None:
    perfect = prediction_metrics(answers(("예금자 보호 한도", "예금자 보호  한도"), ("a cat", "a cat")), math.log(4.0))
    assert perfect == {
        "examples": 2,
        "chrf": 100.0,
        "rouge_l": 1.0,
        "exact_match": 1.0,
        "perplexity": pytest.approx(4.0),
    }
    half = prediction_metrics(answers(("금리 인상 발표", "금리 인하 발표"), ("a", "a")), None)
    assert half["exact_match"] == 0.5
    assert half["rouge_l"] == pytest.approx((2 / 3 + 1) / 2)
    assert 0 < half["chrf"] < 100
    assert "perplexity" not in half


def test_nothing_to_compare_gives_perplexity_alone() -> None:
    assert prediction_metrics([], 0.0) == {"examples": 0, "perplexity": 1.0}
    assert prediction_metrics(answers(("", "")), None)["exact_match"] == 1.0


def test_answers_stay_when_a_lost_node_took_their_pictures_along() -> None:
    def pixels(ids: object) -> object:
        raise ray.exceptions.NodeDiedError("it is gone")

    source: Any = SimpleNamespace(pixels=pixels)
    assert small_pictures(source, [Question((1, 2), (3,), (7,), (0,))]) == []

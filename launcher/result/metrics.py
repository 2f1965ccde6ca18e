"""Scores generated answers with the libraries that papers cite: sacrebleu's chrF and Google's ROUGE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gemfleet.train.model.predict import Prediction


class CharacterClasses:
    """Splits a text of any script into words for ROUGE, whose own tokenizer drops all but a-z and 0-9."""

    def tokenize(self, text: str) -> list[str]:
        return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def prediction_metrics(predictions: Sequence[Prediction], eval_loss: float | None) -> dict[str, Any]:
    """chrF (0 to 100), ROUGE-L F and exact match but for spaces (both 0 to 1), perplexity where the loss is known."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import CHRF

    metrics: dict[str, Any] = {"examples": len(predictions)}
    if predictions:
        hypotheses, references = [p.prediction for p in predictions], [p.reference for p in predictions]
        scorer = RougeScorer(["rougeL"], tokenizer=CharacterClasses())
        rouge = [scorer.score(r, h)["rougeL"].fmeasure for r, h in zip(references, hypotheses, strict=True)]
        same = [r.split() == h.split() for r, h in zip(references, hypotheses, strict=True)]
        metrics["chrf"] = CHRF().corpus_score(hypotheses, [references]).score
        metrics["rouge_l"] = sum(rouge) / len(rouge)
        metrics["exact_match"] = sum(same) / len(same)
    if eval_loss is not None:
        metrics["perplexity"] = math.exp(min(eval_loss, 700.0))
    return metrics

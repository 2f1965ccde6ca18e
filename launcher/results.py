"""From a trained checkpoint to what is published: answers on the evaluation set, and the facts that the card tells."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gemfleet.train.config import TrainConfig

from .config import LaunchConfig
from .data_tasks import RayBlockSource
from .placement import Placement
from .prediction_tasks import Progress, predict_on_cluster, write_predictions


def predict_answers(
    config: LaunchConfig,
    source: RayBlockSource,
    checkpoint: Path,
    folders: Mapping[str, str],
    placement: Placement,
    target: Path,
    eval_loss: float | None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Generate on the evaluation set where there is one and write it to `target`; returns the metrics."""
    assert config.predict is not None
    predictions = []
    if source.has_eval:
        train = config.train
        predictions = predict_on_cluster(source, checkpoint, folders, placement, config.predict, train, progress)
    return write_predictions(target, predictions, eval_loss)


def card_facts(
    asked: TrainConfig, steps: Sequence[Mapping[str, Any]], placement: Placement, result: Mapping[str, Any], report: str
) -> dict[str, Any]:
    """What the card says beyond the checkpoint's own files. `steps` are the records of the optimizer steps."""
    rates = [record["tokens_per_second"] for record in steps]
    return {
        "data": asked.data.train,
        "data_report": report,
        "ranks": placement.describe(),
        "device": result.get("device"),
        "tokens_per_second": float(statistics.median(rates)) if rates else None,
        "state": "stopped" if result["stopped"] else "succeeded",
    }

"""Prediction on the cluster: each rank's share of the evaluation set is answered by an actor of a rank's size.

It starts once training has let its ranks go, and needs no process group, so a slow rank holds up no other. Every
rank holds the whole base model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from gemfleet.launcher.config.schema import PredictConfig
from gemfleet.launcher.placement import Placement
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.device.cpu import hide_gpus
from gemfleet.train.errors import UserError
from gemfleet.train.interfaces import BlockSource
from gemfleet.train.model.predict import Prediction, Predictor, Question, questions

from .metrics import prediction_metrics

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
Progress = Callable[[int, int], None]


class PredictingRank:
    """One rank of the prediction; lives in a process of its own."""

    def __init__(
        self, folders: Mapping[str, str], adapter: Mapping[str, bytes], train: TrainConfig, on_gpu: bool
    ) -> None:
        if not on_gpu:
            hide_gpus()
        node = ray.get_runtime_context().get_node_id()
        if node not in folders:
            raise UserError(f"the model was not staged to node {node}, which joined after the run began")
        with TemporaryDirectory(prefix="gemfleet-adapter-") as folder:
            for name, content in adapter.items():
                (Path(folder) / name).write_bytes(content)
            self._predictor = Predictor(Path(folders[node]), Path(folder) if adapter else None, train)

    def questions(self, source: BlockSource, rank: int, answer_after: str) -> list[Question]:
        return questions(source.eval_rows(rank), self._predictor.tokenizer, answer_after)

    def answer(self, batch: list[Question], max_new_tokens: int) -> list[Prediction]:
        return self._predictor.answer(batch, max_new_tokens)


def predict_on_cluster(
    source: BlockSource,
    checkpoint: Path | None,
    folders: Mapping[str, str],
    placement: Placement,
    config: PredictConfig,
    train: TrainConfig,
    progress: Progress | None = None,
) -> list[Prediction]:
    """Answers to the whole evaluation set, rank by rank, batches handed to whichever rank is free.

    checkpoint: whose adapter is used; None: the base model answers as it is
    """
    adapter = {} if checkpoint is None else {name: (checkpoint / name).read_bytes() for name in ADAPTER_FILES}
    resources = placement.resources_per_worker()
    remote = ray.remote(PredictingRank).options(num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0))
    on_gpu = placement.gpus_per_worker > 0
    ranks = [remote.remote(dict(folders), adapter, train, on_gpu) for _ in range(placement.workers)]
    try:
        shares = [rank.questions.remote(source, n, config.answer_after) for n, rank in enumerate(ranks)]
        asked = [question for share in ray.get(shares) for question in share][: config.limit]
        return _hand_out(ranks, asked, config, progress)
    finally:
        for rank in ranks:
            ray.kill(rank)


def _hand_out(
    ranks: list[Any], asked: list[Question], config: PredictConfig, progress: Progress | None
) -> list[Prediction]:
    order = sorted(range(len(asked)), key=lambda i: len(asked[i].prompt))  # like lengths together: little padding
    batches = [order[first : first + config.batch] for first in range(0, len(order), config.batch)]
    answers: dict[int, Prediction] = {}
    free = list(ranks)
    running: dict[Any, tuple[list[int], Any]] = {}
    while batches or running:
        while batches and free:
            batch, rank = batches.pop(), free.pop()
            running[rank.answer.remote([asked[i] for i in batch], config.max_new_tokens)] = (batch, rank)
        (done,), _ = ray.wait(list(running), num_returns=1)
        batch, rank = running.pop(done)
        free.append(rank)
        answers.update(zip(batch, ray.get(done), strict=True))
        if progress is not None:
            progress(len(answers), len(asked))
    return [answers[index] for index in range(len(asked))]


def write_predictions(folder: Path, predictions: list[Prediction], eval_loss: float | None) -> dict[str, Any]:
    """`predictions.jsonl` and `metrics.json` in `folder` (made); returns the metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(prediction.to_dict(), ensure_ascii=False) for prediction in predictions]
    (folder / "predictions.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    metrics = prediction_metrics(predictions, eval_loss)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics

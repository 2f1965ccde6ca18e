"""Predicts on the cluster after training: actors with a rank's resources answer the evaluation set.

Each actor holds the whole base model. There is no process group, so a slow actor delays no other.
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
from gemfleet.train.checkpoint.state import ADAPTER_FILE
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.device.cpu import hide_gpus
from gemfleet.train.errors import UserError
from gemfleet.train.interfaces import BlockSource
from gemfleet.train.model.predict import Prediction, Predictor, Question, questions
from gemfleet.train.model.starting_adapter import ADAPTER_CONFIG_FILE

from .answered_pictures import small_pictures
from .metrics import prediction_metrics

ADAPTER_FILES = (ADAPTER_CONFIG_FILE, ADAPTER_FILE)
Progress = Callable[[int, int], None]


def base_here(folders: Mapping[str, str]) -> Path:
    """The base's folder on this process's node. folders: by node id. Raises UserError where it was not staged."""
    node = ray.get_runtime_context().get_node_id()
    if node not in folders:
        raise UserError(
            f"the model was not staged to node {node}, which joined after the run began; start the run again"
        )
    return Path(folders[node])


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files, by name, into an existing folder."""
    for name, content in files.items():
        (folder / name).write_bytes(content)


class PredictingRank:
    """The actor in the place of one rank."""

    def __init__(
        self,
        folders: Mapping[str, str],
        adapter: Mapping[str, bytes],
        train: TrainConfig,
        on_gpu: bool,
        source: BlockSource,
    ) -> None:
        if not on_gpu:
            hide_gpus()
        with TemporaryDirectory(prefix="gemfleet-adapter-") as folder:
            write_files(Path(folder), adapter)
            base, there = base_here(folders), Path(folder) if adapter else None
            self._predictor = Predictor(base, there, train, pictures=source)
        self._source = source

    def questions(self, rank: int, answer_after: str) -> list[Question]:
        sets = [self._source.eval_rows(rank, name) for name in self._source.eval_sets]
        tokenizer = self._predictor.tokenizer
        return [question for rows in sets for question in questions(rows, tokenizer, answer_after)]

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
) -> tuple[list[Prediction], list[list[str]]]:
    """Answers to the whole evaluation set, in the order of ranks, and the first ones' pictures for people.

    Each free actor takes the next batch.

    checkpoint: of the adapter; None: the base model answers without one
    folders: the model's folder on each node, by node id; progress: called with answered and all questions
    """
    adapter = {} if checkpoint is None else {name: (checkpoint / name).read_bytes() for name in ADAPTER_FILES}
    resources = placement.resources_per_rank()
    remote = ray.remote(PredictingRank).options(num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0))
    on_gpu = placement.gpus_per_rank > 0
    ranks = [remote.remote(dict(folders), adapter, train, on_gpu, source) for _ in range(placement.ranks)]
    try:
        with_rows = ranks[: train.data_ranks(placement.ranks)]
        shares = [rank.questions.remote(n, config.answer_after) for n, rank in enumerate(with_rows)]
        asked = [question for share in ray.get(shares) for question in share][: config.limit]
        return _hand_out(ranks, asked, config, progress), small_pictures(source, asked)
    finally:
        for rank in ranks:
            ray.kill(rank)


def _hand_out(
    ranks: list[Any], asked: list[Question], config: PredictConfig, progress: Progress | None
) -> list[Prediction]:
    order = sorted(range(len(asked)), key=lambda i: len(asked[i].prompt))  # similar lengths need little padding
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
    """Write `predictions.jsonl` and `metrics.json` into `folder`, which is made if missing. Returns the metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(prediction.to_dict(), ensure_ascii=False) for prediction in predictions]
    (folder / "predictions.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    metrics = prediction_metrics(predictions, eval_loss)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics

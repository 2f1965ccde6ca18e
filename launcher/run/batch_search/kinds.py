"""Finds the rows of a pass for each kind of GPUs, where `cluster.gpu_kind: any` gives a run several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.train.batch_finder.cache import BatchCache
from gemfleet.train.batch_finder.decision import Decision
from gemfleet.train.config.schema import TrainConfig

from .search import FindTask, Tell, settle_micro


def settle_kinds(
    task: FindTask,
    cache: BatchCache | None,
    key_of: Callable[[str], str],
    tell: Tell,
    decisions: Mapping[str, Decision],
) -> TrainConfig:
    """The settings with a number of rows for each kind of GPUs, told as an event. See `settle_micro`.

    key_of: the cache's key for a kind; decisions: for each kind, by the driver's name
    """

    def of_kind(gpu: str, kind: EventKind, sentence: str, facts: Mapping[str, Any]) -> None:
        tell(kind, f"{gpu}: {sentence}", {**facts, "gpu": gpu})

    found = {
        gpu: settle_micro(replace(task, gpu=gpu), cache, key_of(gpu), partial(of_kind, gpu), decision)
        for gpu, decision in decisions.items()
    }
    rows = {gpu: one.batch.rows_per_pass for gpu, one in found.items()}
    sentence = "micro-batch by kind: " + ", ".join(f"{number} on {gpu}" for gpu, number in rows.items())
    tell(EventKind.BATCH_PLANNED, sentence, {"rows": min(rows.values()), "rows_by_gpu": rows, "reason": sentence})
    return with_kinds(task.config, found)


def with_kinds(config: TrainConfig, found: Mapping[str, TrainConfig]) -> TrainConfig:
    """The settings with the rows that were found for each kind. An evaluation has passes that fit all kinds."""
    rows = {gpu: one.batch.rows_per_pass for gpu, one in found.items()}
    batch = config.batch.model_copy(update={"micro": min(rows.values()), "micro_by_gpu": rows})
    evaluation = config.evaluation
    if any(one.evaluation.micro != config.evaluation.micro for one in found.values()):
        fitting = min(one.evaluation.micro or one.batch.rows_per_pass for one in found.values())
        evaluation = evaluation.model_copy(update={"micro": fitting})
    return config.model_copy(update={"batch": batch, "evaluation": evaluation})

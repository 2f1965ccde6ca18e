"""Lowers what a rank holds in memory after one ran out of it. The global batch stays, and so does the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.train.batch_finder.cache import BatchCache, batch_cache_file
from gemfleet.train.config.schema import ActivationCheckpointing, TrainConfig
from gemfleet.train.device.out_of_memory import remedy
from gemfleet.train.errors import UserError

from .failure_policy import Event

MORE_RECOMPUTATION: Mapping[ActivationCheckpointing, ActivationCheckpointing] = {
    "off": "selective",
    "selective": "full",
}


@dataclass(frozen=True)
class Lowered:
    """train: the settings to continue with; sentence: what changed; facts: the same, as the event's data"""

    train: TrainConfig
    sentence: str
    facts: Mapping[str, Any]


def lowered(train: TrainConfig, cause: Event, recomputation_open: bool) -> Lowered:
    """Halve the rows in a pass, also in an evaluation's. At one row, recompute more, where the person left that open.

    cause: the event of the rank that ran out of memory. Raises UserError where nothing is left to lower.
    """
    rank, rows, scored = cause["data"]["rank"], train.batch.rows_per_pass, train.evaluation.micro
    facts = {"rank": rank, "global": train.batch.global_, "cause": cause["message"]}
    if rows == 1 and scored in (None, 1):
        more = MORE_RECOMPUTATION.get(train.recomputation) if recomputation_open else None
        if more is None:
            raise UserError(f"rank {rank} ran out of memory with one row in a pass; {remedy(1)}")
        change = f"activation checkpointing goes from {train.recomputation} to {more}"
        sentence = f"rank {rank} ran out of memory with one row in a pass; {change}"
        more_facts = {**facts, "from": 1, "to": 1, "activation_checkpointing": more}
        return Lowered(train.model_copy(update={"activation_checkpointing": more}), sentence, more_facts)
    smaller, fewer = max(1, rows // 2), None if scored is None else max(1, scored // 2)
    sentence = f"rank {rank} ran out of memory; the micro-batch goes from {rows} to {smaller} rows"
    if scored is not None:
        sentence += f", an evaluation's from {scored} to {fewer}"
    return Lowered(train.with_micro(smaller, fewer), sentence, {**facts, "from": rows, "to": smaller})


def forget_found(events: Sequence[Event]) -> None:
    """Remove from the cache the micro-batch that this launch used: it did not fit."""
    for event in events:
        if event["kind"] in (EventKind.BATCH_FOUND, EventKind.BATCH_CACHED):
            BatchCache(batch_cache_file()).remove(event["data"]["key"])

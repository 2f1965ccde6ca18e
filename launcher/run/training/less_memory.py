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

SMALL_LOSS = 256  # rows in a chunk; with fewer still, little memory is gained
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


def lowered(train: TrainConfig, cause: Event, asked: TrainConfig) -> Lowered:
    """Halve the rows in a pass, also in an evaluation's. At one row, lower what `less_for_a_row` finds.

    cause: the event of the rank that ran out of memory; asked: what the person wrote
    Raises UserError where nothing is left to lower.
    """
    rank, rows, scored = cause["data"]["rank"], train.batch.most_rows, train.evaluation.micro
    facts = {"rank": rank, "global": train.batch.global_, "cause": cause["message"]}
    if rows == 1 and scored in (None, 1):
        change = less_for_a_row(train, asked)
        if change is None:
            raise UserError(f"rank {rank} ran out of memory with one row in a pass; {remedy(1)}")
        (field, value), words = change
        sentence = f"rank {rank} ran out of memory with one row in a pass; {words}"
        return Lowered(train.model_copy(update={field: value}), sentence, {**facts, "from": 1, "to": 1, field: value})
    batch, fewer = train.batch.halved(), None if scored is None else max(1, scored // 2)
    smaller = batch.most_rows
    sentence = f"rank {rank} ran out of memory; the micro-batch goes from {rows} to {smaller} rows"
    if scored is not None:
        sentence += f", an evaluation's from {scored} to {fewer}"
    lower = train.with_micro(batch.rows_per_pass, fewer)
    lower = lower.model_copy(update={"batch": batch})
    return Lowered(lower, sentence, {**facts, "from": rows, "to": smaller})


def less_for_a_row(train: TrainConfig, asked: TrainConfig) -> tuple[tuple[str, Any], str] | None:
    """A field with the value that makes one row take less, and the change in words; None if the person left none open.

    First the loss's chunk, which costs the least speed, then recomputation.
    """
    chunk = train.loss_chunk
    if asked.loss_chunk_rows == "auto" and chunk is not None and chunk > SMALL_LOSS:
        return ("loss_chunk_rows", SMALL_LOSS), f"the loss goes in chunks of {SMALL_LOSS} rows instead of {chunk}"
    more = MORE_RECOMPUTATION.get(train.recomputation) if asked.activation_checkpointing == "auto" else None
    if more is None:
        return None
    return ("activation_checkpointing", more), f"activation checkpointing goes from {train.recomputation} to {more}"


def forget_found(events: Sequence[Event]) -> None:
    """Remove from the cache the micro-batch that this launch used: it did not fit."""
    for event in events:
        if event["kind"] in (EventKind.BATCH_FOUND, EventKind.BATCH_CACHED):
            BatchCache(batch_cache_file()).remove(event["data"]["key"])

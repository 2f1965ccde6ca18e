"""Memory ran out while ranks trained: they start again from the last checkpoint with half the rows in a pass.

The global batch stays, so the recipe does, and such a restart is not counted among the allowed failures.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from gemfleet.cluster.head import HeadActor
from gemfleet.cluster.registry.run_registry import RunRegistry, RunState
from gemfleet.train.batch_finder.cache import BatchCache, batch_cache_file
from gemfleet.train.config.schema import ActivationCheckpointing, TrainConfig
from gemfleet.train.device.out_of_memory import remedy
from gemfleet.train.errors import UserError
from ray.train import UserCallback

log = logging.getLogger("gemfleet.launcher")
RANK_EVENT = "rank_out_of_memory"  # a rank's own words; several ranks may say so at once
RUN_EVENT = "out_of_memory"  # the head's answer to it, once
MORE_RECOMPUTATION: Mapping[ActivationCheckpointing, ActivationCheckpointing] = {
    "off": "selective",
    "selective": "full",
}
MOVED_EVENT = "moved"  # the ranks start anew on other nodes, or in another number


def is_excused(event: Mapping[str, Any]) -> bool:
    """Whether this event says that an attempt ended for a reason which is no failure."""
    return event["kind"] == RUN_EVENT or (event["kind"] == MOVED_EVENT and bool(event["data"]["excused"]))


class RanksNeedMemoryError(RuntimeError):
    """Ends Ray's run, so that the next one begins with a smaller micro-batch."""


class EndsForMemory(UserCallback):  # type: ignore[misc]
    """Runs in Ray's controller when ranks failed. An exception out of it ends the run; none lets Ray restart."""

    def __init__(self, recorder: HeadActor) -> None:
        self._recorder = recorder

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        try:
            newest = self._recorder.call("newest_event", (RANK_EVENT, RUN_EVENT))
        except Exception:
            log.exception("the recorder could not be asked; Ray's own restart goes on")
            return
        if newest is not None and newest["kind"] == RANK_EVENT:
            raise RanksNeedMemoryError(newest["message"])


class MemoryRestart:
    """What the driver knows of such restarts, all of it from the run's events."""

    def __init__(self, registry: RunRegistry, run_id: str) -> None:
        self._registry, self._run_id = registry, run_id

    def wanted(self) -> bool:
        """Whether a rank ran out of memory and nobody has answered yet."""
        newest = [event["kind"] for event in self._events() if event["kind"] in (RANK_EVENT, RUN_EVENT)]
        return newest[-1:] == [RANK_EVENT]

    def lowered(self, train: TrainConfig, note: Callable[[str], None], recomputation_open: bool = False) -> TrainConfig:
        """The same recipe with half the rows in a pass, an evaluation's too; one event.

        At one row more is recomputed, where that was left open; else UserError.
        """
        cause = next(event for event in reversed(self._events()) if event["kind"] == RANK_EVENT)
        rank, rows, scored = cause["data"]["rank"], train.batch.rows_per_pass, train.evaluation.micro
        if rows == 1 and scored in (None, 1):
            more = MORE_RECOMPUTATION.get(train.recomputation) if recomputation_open else None
            if more is None:
                raise UserError(f"rank {rank} ran out of memory with one row in a pass; {remedy(1)}")
            return self._recomputing(train, more, cause, note)
        smaller, fewer = max(1, rows // 2), None if scored is None else max(1, scored // 2)
        sentence = f"rank {rank} ran out of memory; the micro-batch goes from {rows} to {smaller} rows"
        if scored is not None:
            sentence += f", an evaluation's from {scored} to {fewer}"
        self._answer(sentence, {"from": rows, "to": smaller}, train, cause)
        note(sentence)
        return train.with_micro(smaller, fewer)

    def _recomputing(
        self, train: TrainConfig, more: ActivationCheckpointing, cause: Mapping[str, Any], note: Callable[[str], None]
    ) -> TrainConfig:
        rank, before = cause["data"]["rank"], train.recomputation
        change = f"activation checkpointing goes from {before} to {more}"
        sentence = f"rank {rank} ran out of memory with one row in a pass; {change}"
        self._answer(sentence, {"from": 1, "to": 1, "activation_checkpointing": more}, train, cause)
        note(sentence)
        return train.model_copy(update={"activation_checkpointing": more})

    def _answer(self, sentence: str, change: Mapping[str, Any], train: TrainConfig, cause: Mapping[str, Any]) -> None:
        """One event, and the state that goes with it."""
        facts = {"rank": cause["data"]["rank"], **change, "global": train.batch.global_, "cause": cause["message"]}
        self._registry.add_event(self._run_id, RUN_EVENT, sentence, facts)
        self._forget_found()
        self._registry.transition(self._run_id, RunState.RESTARTING, "out of memory")

    def failures_left(self, allowed: int) -> int:
        """Of the allowed failures, those not used up; below 0 when one more than them has happened.

        An attempt that ended for want of memory used none, nor did one that saved and moved elsewhere.
        """
        events = self._events()
        attempts = len([event for event in events if event["kind"] == "attempt"])
        return allowed - (attempts - len([event for event in events if is_excused(event)]))

    def _forget_found(self) -> None:
        """What a search found did not hold, so that no later run shall rely on it."""
        for event in self._events():
            if event["kind"] in ("batch_found", "batch_cached"):
                BatchCache(batch_cache_file()).remove(event["data"]["key"])

    def _events(self) -> list[dict[str, Any]]:
        """Those of this launch: what happened before a resume was answered then."""
        return self._registry.events(self._run_id, self._registry.launch_seq(self._run_id))

"""Ranks that must go elsewhere: a node is about to go or is gone, or new ones make room for more of an elastic run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ray.exceptions
from gemfleet.cluster.head import HeadActor
from gemfleet.cluster.inventory import Node, answering_nodes, list_nodes, of_kind
from gemfleet.cluster.registry.run_registry import RunRegistry
from gemfleet.launcher.placement import Placement
from ray.train import UserCallback

from .memory_restart import MOVED_EVENT

log = logging.getLogger("gemfleet.launcher")
LOST_EVENT = "places_lost"
LOOK_SECONDS = 2.0
SETTLE_SECONDS = 6.0  # nodes that join together make one larger run, not several


@dataclass(frozen=True)
class Move:
    """Why the ranks save and end now. kind: a node with ranks is being drained, or there is room for more ranks."""

    kind: Literal["preempted", "grown"]
    reason: str


def reason_to_move(nodes: Sequence[Node], rank_nodes: Collection[str], workers: int, wanted: int) -> Move | None:
    """What the cluster as it is asks for; None to stay.

    rank_nodes: ids of the nodes that ranks run on; wanted: the ranks that the run could have now instead of `workers`
    """
    leaving = [node.address for node in nodes if node.draining and node.id in rank_nodes]
    if leaving:
        return Move("preempted", f"the node {', '.join(leaving)} is being drained")
    if wanted > workers:
        return Move("grown", f"there is room for {wanted} ranks instead of {workers}")
    return None


class MoveWatch:
    """Looks at the cluster while ranks train, and has them save and end where they should go on elsewhere."""

    def __init__(
        self,
        registry: RunRegistry,
        run_id: str,
        recorder: HeadActor,
        workers: int,
        wanted: Callable[[], int],
        nodes: Callable[[], Sequence[Node]] = list_nodes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`wanted`: how many ranks the run could have now, by the claims of all runs."""
        self._registry, self._run_id, self._recorder = registry, run_id, recorder
        self._workers, self._wanted, self._nodes, self._clock = workers, wanted, nodes, clock
        self._looked_at = clock()
        self._room_since: float | None = None
        self.asked: Move | None = None

    def look(self) -> None:
        """Call it often; it looks every few seconds. Says again what it asked for, should the recorder have died."""
        now = self._clock()
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        try:
            self._look(now)
        except (ray.exceptions.RayError, RuntimeError, OSError):
            log.warning("the cluster could not be looked at; the next look comes soon", exc_info=True)

    def _look(self, now: float) -> None:
        rank_nodes = {rank["node"] for rank in self._registry.ranks(self._run_id)}
        if self.asked is None and rank_nodes:
            move = reason_to_move(self._nodes(), rank_nodes, self._workers, self._wanted())
            self.asked = self._settled(move, now)
            if self.asked is not None:
                text = f"{self.asked.reason}: a checkpoint is saved, then training goes on without delay"
                self._registry.add_event(self._run_id, "moving", text, {"kind": self.asked.kind})
        if self.asked is not None:
            self._recorder.call("pause", True)

    def _settled(self, move: Move | None, now: float) -> Move | None:
        """A node that goes cannot wait; room is taken once it has been there for some seconds."""
        if move is None or move.kind == "preempted":
            self._room_since = None
            return move
        self._room_since = self._room_since if self._room_since is not None else now
        return move if now - self._room_since >= SETTLE_SECONDS else None


class PlacesLostError(RuntimeError):
    """Ends Ray's run: the nodes that hold the model have no place for all its ranks, and it would wait without a word,
    or place them on a node that joined since and lacks the model."""


class EndsForPlaces(UserCallback):  # type: ignore[misc]
    """Runs in Ray's controller when ranks failed. An exception out of it ends the run; none lets Ray restart."""

    def __init__(self, recorder: HeadActor, placement: Placement, staged: Collection[str]) -> None:
        """`staged`: ids of the nodes that hold the model, for Ray would place ranks on others too."""
        self._recorder, self._placement, self._staged = recorder, placement, frozenset(staged)

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        size = self._placement.cpus_per_worker, self._placement.gpus_per_worker
        try:
            nodes = [n for n in of_kind(answering_nodes(), self._placement.kind) if n.bundles(*size, free=False)]
            room = sum(node.bundles(*size, free=False) for node in nodes if node.id in self._staged)
            joined = [node.address for node in nodes if node.id not in self._staged]
            if room >= self._placement.workers and not joined:
                return
            text = f"ranks were lost; nodes that hold the model have places for {room} of {self._placement.workers}"
            self._recorder.call("event", LOST_EVENT, text, {"room": room, "joined": joined})
        except Exception:
            log.exception("the cluster could not be looked at; Ray's own restart goes on")
            return
        raise PlacesLostError(text)


def move_after(
    registry: RunRegistry, run_id: str, asked: Move | None, result: Mapping[str, Any] | None, failed: bool
) -> tuple[str, bool] | None:
    """How a fit that ended is to go on elsewhere: (reason, whether that is excused); None when it has ended for good.

    asked: what its ranks were asked to end for; result: the newest that rank 0 told; failed: whether Ray raised
    """
    kinds = (LOST_EVENT, MOVED_EVENT)
    events = registry.events(run_id, registry.launch_seq(run_id))
    newest = next((event for event in reversed(events) if event["kind"] in kinds), None)
    preempted = asked is not None and asked.kind == "preempted"
    if registry.stop_requested(run_id):
        return None
    if failed:
        lost = newest is not None and newest["kind"] == LOST_EVENT
        return (newest["message"], preempted) if newest is not None and lost else None
    if asked is not None and result is not None and result["stopped"]:
        return asked.reason, True
    return None

"""Moves ranks to other nodes: decides when they save and end, and prepares where training continues."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import ray.exceptions
from gemfleet.cluster.checkpoint_store.client import StoreClient
from gemfleet.cluster.errors import ResourcesUnavailable
from gemfleet.cluster.inventory import Node, list_nodes
from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.cluster.registry.recorder_client import RecorderClient
from gemfleet.cluster.registry.run_registry import RunRegistry, RunState
from gemfleet.launcher.run.admission import find_places
from gemfleet.launcher.run.data.pack import pack_on_cluster
from gemfleet.launcher.run.prepared import Ground, stage_adapter, stage_to
from gemfleet.launcher.run.session import RunSession
from gemfleet.train.config.schema import TrainConfig

from .failure_policy import Move, Relocate

log = logging.getLogger("gemfleet.launcher")
LOOK_SECONDS = 2.0
SETTLE_SECONDS = 6.0  # so that nodes that join one after another cause one move, not several


def reason_to_move(nodes: Sequence[Node], rank_nodes: Collection[str], ranks: int, wanted: int) -> Move | None:
    """Why the ranks should move, by the state of the cluster; None if they should stay.

    rank_nodes: ids of the nodes that ranks run on; ranks: how many there are; wanted: how many there could be
    """
    leaving = [node.address for node in nodes if node.draining and node.id in rank_nodes]
    if leaving:
        return Move("preempted", f"the node {', '.join(leaving)} is being drained")
    if wanted > ranks:
        return Move("grown", f"there is room for {wanted} ranks instead of {ranks}")
    return None


class MoveWatch:
    """Looks at the cluster while ranks train, and asks them to save and end when they should move."""

    def __init__(
        self,
        registry: RunRegistry,
        run_id: str,
        recorder: RecorderClient,
        ranks: int,
        wanted: Callable[[], int],
        nodes: Callable[[], Sequence[Node]] = list_nodes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """wanted: returns how many ranks the run could have now, by the claims of all runs"""
        self._registry, self._run_id, self._recorder = registry, run_id, recorder
        self._ranks, self._wanted, self._nodes, self._clock = ranks, wanted, nodes, clock
        self._looked_at = clock()
        self._room_since: float | None = None
        self.asked: Move | None = None

    def look(self) -> None:
        """Call it often: it looks every 2 s. It repeats its request to the ranks, as the recorder may have died."""
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
            move = reason_to_move(self._nodes(), rank_nodes, self._ranks, self._wanted())
            self.asked = self._settled(move, now)
            if self.asked is not None:
                text = f"{self.asked.reason}: a checkpoint is saved, then training goes on without delay"
                self._registry.add_event(self._run_id, EventKind.MOVING, text, {"kind": self.asked.kind})
        if self.asked is not None:
            self._recorder.pause(True)

    def _settled(self, move: Move | None, now: float) -> Move | None:
        """Pass on a move off a drained node at once, and a move into more room after that has lasted 6 s."""
        if move is None or move.kind == "preempted":
            self._room_since = None
            return move
        self._room_since = self._room_since if self._room_since is not None else now
        return move if now - self._room_since >= SETTLE_SECONDS else None


def move(run: RunSession, ground: Ground, train: TrainConfig, store: StoreClient, decided: Relocate) -> Ground:
    """Find other nodes for the ranks, waiting for room as preflight does. Returns the ground of the next fit.

    Raises ResourcesUnavailable when there is no room in time. The run is then marked interrupted and can be resumed.
    """
    run.registry.transition(run.id, RunState.RESTARTING, decided.reason)
    run.note(decided.reason)
    try:
        placement = find_places(run, train.context_size)
    except ResourcesUnavailable as error:
        run.registry.transition(run.id, RunState.INTERRUPTED, str(error))
        raise
    folders = stage_to(run, ground.model, ground.folders)
    adapters = stage_adapter(run, train, ground.model, ground.adapters)
    source, ranks = ground.source, placement.ranks
    if ranks != ground.placement.ranks:
        newest, _ = store.newest_verified()
        source = pack_on_cluster(
            ground.data, train, train.data_ranks(ranks), newest.step if newest else 0, run.display.bars
        )
    text = f"{decided.reason}; training goes on with {placement.describe()}"
    facts = {"from": ground.placement.ranks, "to": ranks, "excused": decided.excused}
    run.registry.add_event(run.id, EventKind.MOVED, text, facts)
    return replace(ground, placement=placement, folders=folders, source=source, adapters=adapters)

"""Starts what training needs while the run still prepares: the actors on the head, and processes for Ray Train.

The ranks' processes import torch meanwhile. While ranks train, others are there to take their places.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
from gemfleet.cluster.checkpoint_store.actor import StorePolicy, begin_store
from gemfleet.cluster.head import HeadActor
from gemfleet.cluster.inventory import Node, answering_nodes, list_nodes, of_kind
from gemfleet.cluster.processes import environment, start_processes
from gemfleet.cluster.registry.recorder_client import RecorderClient, start_recorder
from gemfleet.launcher.config.cluster import ClusterConfig
from gemfleet.launcher.placement import Placement
from gemfleet.launcher.rank.ahead import RANK_VARIABLES
from gemfleet.launcher.run.session import RunSession
from gemfleet.train.config.home import gemfleet_home
from gemfleet.train.step.record import points

from .ray_trainer import fit_variables

log = logging.getLogger("gemfleet.launcher")
TRAIN_ACTORS = 3  # the controller, and two that it starts on its node
PROCESS_BYTES = 600 * 2**20  # of one that has imported them, at most
MEMORY_SHARE = 0.05  # of a node, which spare processes may take
BEGIN_SECONDS = 900
SPARE_SECONDS = 30 * 24 * 3600  # they end with the run


@dataclass(frozen=True)
class HeadActors:
    """The run's recorder and store. They end when the driver lets go of this, or ends."""

    recorder: RecorderClient
    store: HeadActor


def start_ahead(run: RunSession, placement: Placement) -> HeadActors:
    """Start the recorder and the store, and processes for Ray Train. Returns while all of them start."""
    cluster = run.config.cluster
    recorder = start_recorder(gemfleet_home(), run.id, points)
    store = begin_store(run.id, run.folder, recorder, store_policy(cluster), cluster.storage)
    nodes, here = answering_nodes(), ray.get_runtime_context().get_node_id()
    if run.config.train.max_steps != 0:
        start_processes(places(placement, nodes), nodes, rank_environment(), BEGIN_SECONDS)
        start_processes({here: TRAIN_ACTORS}, nodes, environment(fit_variables(), of_actor=False), BEGIN_SECONDS)
    return HeadActors(recorder, store)


class SpareRanks:
    """Has spare processes for the ranks, once they train: before that they would only be in each other's way."""

    def __init__(self) -> None:
        self._pids: set[int] = set()
        self._since = 0.0
        self._started = True

    def look(self, snapshot: Mapping[str, Any]) -> None:
        """Call it often. snapshot: see `RunRecorder.snapshot`"""
        ranks = snapshot["ranks"]
        if pids := {rank["pid"] for rank in ranks} - self._pids:
            self._pids |= pids
            self._since, self._started = max(rank["heartbeat"] for rank in ranks), False
        step = snapshot["step"]
        if not self._started and step and step["time"] > self._since:
            self._started = True
            try:
                nodes = list_nodes()
                counts = spare_places(Counter(rank["node"] for rank in ranks), nodes)
                start_processes(counts, nodes, rank_environment(), SPARE_SECONDS)
            except (ray.exceptions.RayError, RuntimeError, OSError):  # the ranks train on without spare processes
                log.warning("the cluster could not be looked at; a restart will take longer", exc_info=True)


def rank_environment() -> str:
    """What Ray Train's controller gives the ranks' processes."""
    return environment({**fit_variables(), **RANK_VARIABLES}, of_actor=True)


def places(placement: Placement, nodes: Sequence[Node]) -> dict[str, int]:
    """How many processes to start on each node, by its id. Empty where it is far from sure where ranks will be."""
    size = placement.cpus_per_rank, placement.gpus_per_rank
    room = {node.id: min(placement.ranks, node.bundles(*size)) for node in of_kind(nodes, placement.kind)}
    return room if sum(room.values()) <= 2 * placement.ranks else {}


def spare_places(taken: Mapping[str, int], nodes: Sequence[Node]) -> dict[str, int]:
    """As many as ranks run on each node, where it has memory in plenty. taken: how many run there, by its id"""
    most = {node.id: MEMORY_SHARE * node.memory_bytes for node in nodes}
    return {node: ranks for node, ranks in taken.items() if ranks * PROCESS_BYTES <= most.get(node, 0)}


def store_policy(cluster: ClusterConfig) -> StorePolicy:
    gib = 2**30
    return StorePolicy(
        keep=cluster.keep_checkpoints,
        best_of="eval_loss" if cluster.keep_best else None,
        warn_free_bytes=int(cluster.warn_free_gib * gib),
        refuse_free_bytes=int(cluster.refuse_free_gib * gib),
    )

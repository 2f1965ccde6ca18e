"""The processes that ranks and Ray Train's actors will live in: their environment, how many there are, and where."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray
from gemfleet.cluster.inventory import Node, of_kind
from gemfleet.cluster.processes import environment, start_processes
from gemfleet.launcher.placement import Placement
from gemfleet.launcher.rank.ahead import RANK_VARIABLES
from ray._common.constants import RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR
from ray.train.v2._internal.constants import DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE, ENV_VARS_TO_PROPAGATE

TRAIN_ACTORS = 2  # the controller, and one that it starts on its node
PROCESS_BYTES = 600 * 2**20  # of one that has imported them, at most
MEMORY_SHARE = 0.1  # of a node, which spare processes may take
BEGIN_SECONDS = 900
SPARE_SECONDS = 30 * 24 * 3600  # they end with the run
# Ray Train reads these from the driver's environment. The first is how often the controller looks for lost ranks: its
# default of 2 s is most of a restart, apart from starting Python. The second is off because `relocation.py` looks after
# drained nodes: Ray's own watcher waits until the deadline and then counts a failure.
FIT_VARIABLES = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


def fit_variables() -> dict[str, str]:
    """What Ray Train adds to the environment of its controller, and of the actors that this starts."""
    given = {name: os.environ[name] for name in ENV_VARS_TO_PROPAGATE if name in os.environ}
    asking = {RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR: DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE}
    return {**asking, **FIT_VARIABLES, **given}


@dataclass(frozen=True)
class Begun:
    """For which placement processes have been started, and when, by `time.monotonic`."""

    placement: Placement
    at: float


def start_for_training(placement: Placement, nodes: Sequence[Node], begun: Begun | None = None) -> Begun:
    """Start processes for the ranks of this placement, and for Ray Train's actors on this node.

    begun: what was started before; only what that lacks is started
    """
    if begun is None or time.monotonic() - begun.at > BEGIN_SECONDS:  # after which they end
        before, here = {}, {ray.get_runtime_context().get_node_id(): TRAIN_ACTORS}
    else:
        before, here = places(begun.placement, nodes), {}
    wanted = {node: ranks - before.get(node, 0) for node, ranks in places(placement, nodes).items()}
    start_processes(wanted, nodes, _rank_environment(), BEGIN_SECONDS)
    start_processes(here, nodes, environment(fit_variables(), of_actor=False), BEGIN_SECONDS)
    return Begun(placement, time.monotonic())


def start_spare(taken: Mapping[str, int], nodes: Sequence[Node]) -> None:
    """Start processes that wait to take the ranks' places. taken: how many ranks run on each node, by its id"""
    start_processes(spare_places(taken, nodes), nodes, _rank_environment(), SPARE_SECONDS)


def places(placement: Placement, nodes: Sequence[Node]) -> dict[str, int]:
    """How many processes to start on each node, by its id. Empty where it is far from sure where ranks will be."""
    size = placement.cpus_per_rank, placement.gpus_per_rank
    room = {node.id: min(placement.ranks, node.bundles(*size)) for node in of_kind(nodes, placement.kind)}
    return room if sum(room.values()) <= 2 * placement.ranks else {}


def spare_places(taken: Mapping[str, int], nodes: Sequence[Node]) -> dict[str, int]:
    """As many as ranks run on each node, where it has memory in plenty. taken: how many run there, by its id"""
    most = {node.id: MEMORY_SHARE * node.memory_bytes for node in nodes}
    return {node: ranks for node, ranks in taken.items() if ranks * PROCESS_BYTES <= most.get(node, 0)}


def _rank_environment() -> str:
    """What Ray Train's controller gives the ranks' processes."""
    return environment({**fit_variables(), **RANK_VARIABLES}, of_actor=True)

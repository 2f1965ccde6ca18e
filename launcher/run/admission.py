"""Where the ranks of a run go: its turn in the queue, and room for its ranks, waited for with the reason shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from gemfleet.cluster.errors import ResourcesUnavailable
from gemfleet.cluster.inventory import Node, answering_nodes, of_kind, wait_for_resources
from gemfleet.cluster.registry.admission import room_for
from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.launcher.config.schema import WorkerRange
from gemfleet.launcher.placement import Placement, grown, mixture_note, place

from .session import RunSession

SETTLE_SECONDS = 3.0  # what the ranks of the last fit held comes free within about a second of their end
SETTLE_LIMIT_SECONDS = 20.0
POLL_SECONDS = 0.5
QUEUE_SECONDS = 1.0


def find_places(run: RunSession) -> Placement:
    """Decide on the ranks of an admitted run, and wait until the cluster has room for them.

    An elastic run takes what there is, once that has stopped changing. ResourcesUnavailable, StoppedBeforeFit.
    """
    cluster = run.config.cluster
    nodes = answering_nodes()
    placement = place(cluster, nodes)
    if note := mixture_note(placement, nodes):
        run.tell(EventKind.MIXED_GPUS, note)

    def suitable() -> list[Node]:
        return of_kind(answering_nodes(), placement.kind)

    size = placement.cpus_per_worker, placement.gpus_per_worker
    limit = cluster.wait_for_resources_s
    wait_for_resources(placement.workers, *size, limit, run.waits_for, suitable, run.heed_stop)
    run.registry.set_reason(run.id, "")
    if isinstance(cluster.workers, WorkerRange):
        wanted = most_ranks(run, placement.workers)
        placement = grown(placement, cluster, min(wanted, settled_room(placement, wanted, suitable)))
        run.claims.resize(run.id, placement.workers)
    run.note(placement.describe())
    return placement


def await_admission(run: RunSession) -> None:
    """Take a place in the queue of the cluster, and return once it is this run's turn and its ranks have room.

    The reason to wait stands in the run's row. Behind other runs there is no limit of time; where the cluster is too
    small, or others than gemfleet's runs use it, ResourcesUnavailable after `wait_for_resources_s`.
    """
    cluster, claims = run.config.cluster, run.claims
    placement = place(cluster, answering_nodes())
    size = placement.cpus_per_worker, float(placement.gpus_per_worker)
    claims.queue(run.id, placement.workers, *size, placement.kind)
    told, waited = "", 0.0
    while True:
        run.heed_stop()
        nodes = answering_nodes()
        claims.resize(run.id, place(cluster, nodes).workers)  # `auto` goes by the nodes that there are
        verdict = claims.admit(run.id, nodes)
        if verdict.admitted:
            run.registry.set_reason(run.id, "")
            return
        if waited >= cluster.wait_for_resources_s and not verdict.behind:
            raise ResourcesUnavailable(
                f"{verdict.reason}; waited {waited:g} s. Lower cluster.workers or cluster.cpus_per_worker, or add nodes"
            )
        if verdict.reason != told:
            told = verdict.reason
            run.waits_for(told)
        sleep = min(QUEUE_SECONDS, max(0.1, cluster.wait_for_resources_s - waited))
        time.sleep(sleep)
        waited += 0.0 if verdict.behind else sleep


def most_ranks(run: RunSession, workers: int) -> int:
    """How many ranks the run could have now: `workers` for one that is not elastic, or while another run waits."""
    elastic = run.config.cluster.workers
    if not isinstance(elastic, WorkerRange):
        return workers
    mine, others = run.claims.split(run.id)
    if any(not claim.admitted for claim in others):
        return workers
    return max(workers, min(elastic.max, room_for(mine, others, answering_nodes())))


def settled_room(
    placement: Placement,
    enough: int,
    nodes: Callable[[], Sequence[Node]] = answering_nodes,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """How many such ranks fit on what is free, once it is `enough` or has been the same for some seconds."""
    size = placement.cpus_per_worker, placement.gpus_per_worker
    begin = since = clock()
    room = -1
    while True:
        now = sum(node.bundles(*size) for node in nodes())
        since, room = (clock() if now != room else since), now
        if room >= enough or clock() - since >= SETTLE_SECONDS or clock() - begin >= SETTLE_LIMIT_SECONDS:
            return room
        sleep(POLL_SECONDS)

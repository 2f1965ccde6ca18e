"""Gives a run its turn in the queue and room for its ranks. While the run waits, its row says for what."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from gemfleet.cluster.errors import ResourcesUnavailable
from gemfleet.cluster.inventory import Node, answering_nodes, of_kind, wait_for_resources
from gemfleet.cluster.registry.admission import room_for
from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.launcher.config.cluster import WorkerRange
from gemfleet.launcher.placement import Placement, grown, mixture_note, place

from .session import RunSession

SETTLE_SECONDS = 3.0  # resources of the last fit's ranks come free about a second after these end
SETTLE_LIMIT_SECONDS = 20.0
POLL_SECONDS = 0.5
QUEUE_SECONDS = 1.0


def find_places(run: RunSession, groups_of: int | None = None) -> Placement:
    """Decide on the ranks of an admitted run, and wait until the cluster has room for them.

    An elastic run waits until the free room stops changing, and takes it. Raises ResourcesUnavailable,
    StoppedBeforeFit.

    groups_of: the ranks that share each pass, once that is settled; None: as the configuration says
    """
    cluster, groups_of = run.config.cluster, groups_of or run.config.ranks_for_each_pass
    nodes = answering_nodes()
    placement = place(cluster, nodes, groups_of)
    if note := mixture_note(placement, nodes):
        run.tell(EventKind.MIXED_GPUS, note)

    def suitable() -> list[Node]:
        return of_kind(answering_nodes(), placement.kind)

    size = placement.cpus_per_rank, placement.gpus_per_rank
    limit = cluster.wait_for_resources_s
    wait_for_resources(placement.ranks, *size, limit, run.waits_for, suitable, run.heed_stop)
    run.registry.set_reason(run.id, "")
    if isinstance(cluster.workers, WorkerRange):
        wanted = most_ranks(run, placement.ranks)
        placement = grown(placement, cluster, min(wanted, settled_room(placement, wanted, suitable)), groups_of)
        run.claims.resize(run.id, placement.ranks)
    run.note(placement.describe())
    return placement


def await_admission(run: RunSession) -> None:
    """Queue the run on its cluster. Return when it is its turn and its ranks have room.

    A run that waits behind other runs waits without limit. One that waits because the cluster is too small, or because
    other programs use it, raises ResourcesUnavailable after `wait_for_resources_s`.
    """
    cluster, claims = run.config.cluster, run.claims
    groups_of = run.config.ranks_for_each_pass
    placement = place(cluster, answering_nodes(), groups_of)
    size = placement.cpus_per_rank, float(placement.gpus_per_rank)
    claims.queue(run.id, placement.ranks, *size, placement.kind)
    told, waited = "", 0.0
    while True:
        run.heed_stop()
        nodes = answering_nodes()
        claims.resize(run.id, place(cluster, nodes, groups_of).ranks)  # `auto` changes with the number of nodes
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


def most_ranks(run: RunSession, ranks: int) -> int:
    """How many ranks the run could have now. `ranks` where it is not elastic, or where another run waits."""
    elastic = run.config.cluster.workers
    if not isinstance(elastic, WorkerRange):
        return ranks
    mine, others = run.claims.split(run.id)
    if any(not claim.admitted for claim in others):
        return ranks
    most = min(elastic.max, room_for(mine, others, answering_nodes()))
    return max(ranks, most - most % run.config.ranks_for_each_pass)


def settled_room(
    placement: Placement,
    enough: int,
    nodes: Callable[[], Sequence[Node]] = answering_nodes,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """How many such ranks fit on what is free. Waits until `enough` fit, or the number stays the same for 3 s."""
    size = placement.cpus_per_rank, placement.gpus_per_rank
    begin = since = clock()
    room = -1
    while True:
        now = sum(node.bundles(*size) for node in nodes())
        since, room = (clock() if now != room else since), now
        if room >= enough or clock() - since >= SETTLE_SECONDS or clock() - begin >= SETTLE_LIMIT_SECONDS:
            return room
        sleep(POLL_SECONDS)

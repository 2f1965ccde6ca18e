"""Where the ranks of a run go: waiting for room with the reason shown, and moving to other nodes between two fits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gemfleet.cluster.checkpoint_store.client import StoreClient
from gemfleet.cluster.errors import ResourcesUnavailable
from gemfleet.cluster.inventory import Node, answering_nodes, of_kind, wait_for_resources
from gemfleet.cluster.registry.admission import room_for
from gemfleet.cluster.registry.run_registry import RunState
from gemfleet.cluster.staging.stage import stage_folder
from gemfleet.train.config.home import gemfleet_home
from gemfleet.train.config.schema import TrainConfig

from ..config.schema import WorkerRange
from ..placement import Placement, grown, mixture_note, place
from .prepare_data import PreparedData, RayBlockSource, pack_on_cluster
from .signals import SIGNALS
from .training.memory_restart import MOVED_EVENT

if TYPE_CHECKING:
    from .launch import Run

SETTLE_SECONDS = 3.0  # what the ranks of the last fit held comes free within about a second of their end
SETTLE_LIMIT_SECONDS = 20.0
POLL_SECONDS = 0.5
QUEUE_SECONDS = 1.0


class StoppedBeforeFit(Exception):  # noqa: N818
    """Somebody asked the run to stop while no rank trains: before the first fit, or between two."""


@dataclass(frozen=True)
class Ground:
    """What the ranks of one fit stand on.

    model: the model's folder on the head; folders: where it is on each node, by node id
    data: tokenised once; source: packed for this number of ranks
    """

    placement: Placement
    model: Path
    folders: dict[str, str]
    data: PreparedData
    source: RayBlockSource


def find_places(run: Run) -> Placement:
    """Decide on the ranks of an admitted run, and wait until the cluster has room for them.

    An elastic run takes what there is, once that has stopped changing. ResourcesUnavailable, StoppedBeforeFit.
    """
    cluster = run.config.cluster
    nodes = answering_nodes()
    placement = place(cluster, nodes)
    if note := mixture_note(placement, nodes):
        run.note(note)
        run.registry.add_event(run.id, "mixed_gpus", note)

    def suitable() -> list[Node]:
        return of_kind(answering_nodes(), placement.kind)

    size = placement.cpus_per_worker, placement.gpus_per_worker
    limit = cluster.wait_for_resources_s
    wait_for_resources(placement.workers, *size, limit, run.waits_for, suitable, partial(heed_stop, run))
    run.registry.set_reason(run.id, "")
    if isinstance(cluster.workers, WorkerRange):
        wanted = most_ranks(run, placement.workers)
        placement = grown(placement, cluster, min(wanted, settled_room(placement, wanted, suitable)))
        run.claims.resize(run.id, placement.workers)
    run.note(placement.describe())
    return placement


def await_admission(run: Run) -> None:
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
        heed_stop(run)
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


def heed_stop(run: Run, doing: str = "waited for room") -> None:
    """StoppedBeforeFit when somebody asked the run to stop. doing: what it did meanwhile, in the past tense."""
    SIGNALS.heed()
    if run.registry.stop_requested(run.id):
        raise StoppedBeforeFit(f"run {run.id} was stopped while it {doing}")


def most_ranks(run: Run, workers: int) -> int:
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


def stage_to(run: Run, folder: Path, known: dict[str, str]) -> dict[str, str]:
    """The folder of each living node that holds the model, brought to those that are not `known` to."""
    cache = str(gemfleet_home() / "cache" / "staged")

    def show(sent: int, total: int) -> None:
        run.display.advance(sent >> 20, total >> 20, "MiB")

    staged = stage_folder(folder, cache, show, known=known)
    if len(staged.folders) > 1 and not (known and not staged.receivers):
        run.note(staged.describe())
    return staged.folders


def move(run: Run, ground: Ground, train: TrainConfig, store: StoreClient, reason: str, excused: bool) -> Ground:
    """Other places for the ranks of a run that saved, or lost some; waits for them as preflight does.

    A run that finds none in time is marked interrupted: its checkpoints are whole, and it can be resumed.
    """
    run.registry.transition(run.id, RunState.RESTARTING, reason)
    run.note(reason)
    try:
        placement = find_places(run)
    except ResourcesUnavailable as error:
        run.registry.transition(run.id, RunState.INTERRUPTED, str(error))
        raise
    folders = stage_to(run, ground.model, ground.folders)
    source, workers = ground.source, placement.workers
    if workers != ground.placement.workers:
        newest, _ = store.newest_verified()
        source = pack_on_cluster(ground.data, train, workers, newest.step if newest else 0, run.display.bars)
    text = f"{reason}; training goes on with {placement.describe()}"
    facts = {"from": ground.placement.workers, "to": workers, "excused": excused}
    run.registry.add_event(run.id, MOVED_EVENT, text, facts)
    return replace(ground, placement=placement, folders=folders, source=source)

"""Decides which run may begin, from the nodes, the claims of runs, and who came first. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..inventory import Node, missing, of_kind


@dataclass(frozen=True)
class Claim:
    """What a run needs of a cluster from its admission to its end, whether its ranks run at the moment or not.

    workers:    the number of ranks
    cpus, gpus: of each rank
    kind:       of the GPUs; empty when any will do
    queued_at:  seconds since the epoch
    admitted:   the run has begun
    held:       how many ranks run now on each node, by node id
    """

    run_id: str
    workers: int
    cpus: float
    gpus: float
    kind: str
    queued_at: float
    admitted: bool
    held: Mapping[str, int]


@dataclass(frozen=True)
class Verdict:
    """Whether a run may begin, and if not, why. `behind`: it waits for other runs of ours, without a limit of time."""

    admitted: bool
    reason: str = ""
    behind: bool = False


def judge(mine: Claim, others: Sequence[Claim], nodes: Sequence[Node]) -> Verdict:
    """Decides on the run `mine`. Runs begin in the order in which they were queued.

    A run that even the empty cluster could not hold waits for nodes to join, and lets others pass meanwhile.
    """
    lacks = missing(mine.workers, mine.cpus, mine.gpus, of_kind(nodes, mine.kind))
    if not _possible(mine, nodes):
        return Verdict(False, lacks)
    place = (mine.queued_at, mine.run_id)
    ahead = [c for c in others if not c.admitted and (c.queued_at, c.run_id) < place and _possible(c, nodes)]
    if ahead:
        last = max(ahead, key=lambda claim: (claim.queued_at, claim.run_id))
        return Verdict(False, f"number {len(ahead) + 1} in the queue, behind run {last.run_id}", behind=True)
    if room_for(mine, others, nodes) >= mine.workers:
        return Verdict(True)
    running = [claim.run_id for claim in others if claim.admitted]
    if running and room_for(mine, others, nodes, once_ended=True) >= mine.workers:
        return Verdict(False, f"first in the queue, waits for room beside {', '.join(running)}: {lacks}", behind=True)
    return Verdict(False, lacks)


def room_for(mine: Claim, others: Sequence[Claim], nodes: Sequence[Node], *, once_ended: bool = False) -> int:
    """How many ranks of the size of `mine` there are places for, the places that it holds itself included.

    A claim of an admitted run counts also while its ranks do not run: before they start, and between a failure and the
    restart. `once_ended`: how many places there would be if all other admitted runs had ended.
    """
    admitted = [claim for claim in others if claim.admitted]
    left = {node.id: _without_strangers(node, [mine, *admitted]) for node in nodes}
    for claim in [] if once_ended else admitted:
        unplaced = claim.workers
        for name, number in claim.held.items():
            if name in left:
                left[name] = _less(left[name], claim, number)
                unplaced -= number
        for node in of_kind(list(left.values()), claim.kind):
            number = max(0, min(unplaced, node.bundles(claim.cpus, claim.gpus)))
            left[node.id] = _less(node, claim, number)
            unplaced -= number
    return sum(node.bundles(mine.cpus, mine.gpus) for node in of_kind(list(left.values()), mine.kind))


def _possible(claim: Claim, nodes: Sequence[Node]) -> bool:
    """Whether the cluster could hold the claim if nothing else ran."""
    of = of_kind(nodes, claim.kind)
    return sum(node.bundles(claim.cpus, claim.gpus, free=False) for node in of) >= claim.workers


def _without_strangers(node: Node, ours: Sequence[Claim]) -> Node:
    """The node as if our runs used nothing: only what others use is not free."""
    held = [(claim.held.get(node.id, 0), claim) for claim in ours]
    cpus = max(0.0, node.cpus - node.free_cpus - sum(number * claim.cpus for number, claim in held))
    gpus = max(0.0, node.gpus - node.free_gpus - sum(number * claim.gpus for number, claim in held))
    return replace(node, free_cpus=node.cpus - cpus, free_gpus=node.gpus - gpus)


def _less(node: Node, claim: Claim, number: int) -> Node:
    cpus, gpus = node.free_cpus - number * claim.cpus, node.free_gpus - number * claim.gpus
    return replace(node, free_cpus=max(0.0, cpus), free_gpus=max(0.0, gpus))

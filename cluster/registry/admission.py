"""Which run may begin: a pure decision over the nodes, what runs have claimed, and who came first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..inventory import Node, missing, of_kind


@dataclass(frozen=True)
class Claim:
    """What a run needs on a cluster from its admission to its end, whether its ranks hold it just now or not.

    kind: of the GPUs, empty where any will do; queued_at: seconds since the epoch
    held: ranks that run now, by the id of their node
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
    """Whether a run may begin, and if not, why. behind: it waits for runs of ours, which has no limit of time."""

    admitted: bool
    reason: str = ""
    behind: bool = False


def judge(mine: Claim, others: Sequence[Claim], nodes: Sequence[Node]) -> Verdict:
    """Runs are admitted in the order in which they were queued.

    One that the cluster could not hold even if it were empty waits for nodes to join, and lets others pass meanwhile.
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
    """How many ranks of `mine`'s size there are places for, those that it holds itself among them.

    What admitted runs have claimed is theirs also while their ranks do not run: before they start, and between a
    failure and the restart. `once_ended`: how many there would be if all of these had ended.
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
    """Whether the cluster could hold it if nothing else ran."""
    of = of_kind(nodes, claim.kind)
    return sum(node.bundles(claim.cpus, claim.gpus, free=False) for node in of) >= claim.workers


def _without_strangers(node: Node, ours: Sequence[Claim]) -> Node:
    """The node with all free that it has, but for what others than our runs use."""
    held = [(claim.held.get(node.id, 0), claim) for claim in ours]
    cpus = max(0.0, node.cpus - node.free_cpus - sum(number * claim.cpus for number, claim in held))
    gpus = max(0.0, node.gpus - node.free_gpus - sum(number * claim.gpus for number, claim in held))
    return replace(node, free_cpus=node.cpus - cpus, free_gpus=node.gpus - gpus)


def _less(node: Node, claim: Claim, number: int) -> Node:
    cpus, gpus = node.free_cpus - number * claim.cpus, node.free_gpus - number * claim.gpus
    return replace(node, free_cpus=max(0.0, cpus), free_gpus=max(0.0, gpus))

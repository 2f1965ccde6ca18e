"""Decides which node gives which chunk of a staged folder to whom. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass


@dataclass(frozen=True)
class Delivery:
    """The way of one chunk.

    giver:  the node that gives it; None for the sender of the folder, who gives it to the first taker only, which then
            gives it to the others
    takers: the nodes that lack it
    """

    chunk: int
    giver: str | None
    takers: tuple[str, ...]


def plan_deliveries(sizes: Sequence[int], held: Mapping[str, Set[int]], lacking: Sequence[str]) -> list[Delivery]:
    """A delivery for every chunk that a node of `lacking` does not have, in the order of chunks.

    sizes: of the chunks, in bytes
    held:  the numbers of the chunks that each node has; all of them for a node with a whole copy

    The sender gives only what no node has, and gives it once. Of the nodes that have a chunk, the one that gave least
    gives it.
    """
    given: Counter[str] = Counter()
    deliveries = []
    for chunk, size in enumerate(sizes):
        takers = [node for node in lacking if chunk not in held.get(node, ())]
        if not takers:
            continue
        holders = [node for node, chunks in held.items() if chunk in chunks]
        giver = min(holders, key=lambda node: given[node], default=None)
        if giver is None:
            first = min(takers, key=lambda node: given[node])
            takers = [first, *(node for node in takers if node != first)]
        # The first taker counts as a giver, also when no other node needs the chunk: so turns stay even.
        given[takers[0] if giver is None else giver] += max(1, size)
        deliveries.append(Delivery(chunk, giver, tuple(takers)))
    return deliveries

"""Who gives a chunk of a staged folder to whom: a pure decision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass


@dataclass(frozen=True)
class Delivery:
    """One chunk's way. giver: the node that has it, None for the sender of the folder; takers: those that lack it.

    What the sender gives goes to the first taker only, which gives it to the others.
    """

    chunk: int
    giver: str | None
    takers: tuple[str, ...]


def plan_deliveries(sizes: Sequence[int], held: Mapping[str, Set[int]], lacking: Sequence[str]) -> list[Delivery]:
    """Every chunk that a node of `lacking` does not have, in order.

    `sizes`: of the chunks; `held`: the numbers of those that a node has, for nodes with a whole copy all of them.
    The sender gives only what nobody has, and gives it once; of those that can give, the one that gave least does.
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
        # A taker that passes a chunk on counts also where it is alone, so that turns stay even.
        given[takers[0] if giver is None else giver] += max(1, size)
        deliveries.append(Delivery(chunk, giver, tuple(takers)))
    return deliveries

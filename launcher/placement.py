"""How many ranks, with what, on the cluster as it is: a pure decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gemfleet.cluster.inventory import Node

from .config import ClusterConfig


@dataclass(frozen=True)
class Placement:
    """Ranks of a run and what each reserves."""

    workers: int
    cpus_per_worker: float
    gpus_per_worker: int
    strategy: str

    def resources_per_worker(self) -> dict[str, float]:
        return {"CPU": self.cpus_per_worker, **({"GPU": 1.0} if self.gpus_per_worker else {})}

    def describe(self) -> str:
        gpu = " and 1 GPU" if self.gpus_per_worker else ""
        return f"{_count(self.workers, 'rank')} with {_count(self.cpus_per_worker, 'CPU')}{gpu} each"


def place(cluster: ClusterConfig, nodes: Sequence[Node]) -> Placement:
    """The ranks for a cluster of these living nodes, by all that they have."""
    gpus = sum(int(node.gpus) for node in nodes)
    per_worker = (1 if gpus else 0) if cluster.gpus_per_worker == "auto" else cluster.gpus_per_worker
    if cluster.workers != "auto":
        workers = cluster.workers
    elif per_worker:
        workers = max(1, gpus)
    else:
        workers = max(1, sum(1 for node in nodes if node.cpus >= 1))
    cpus = 1.0 if cluster.cpus_per_worker == "auto" else float(cluster.cpus_per_worker)
    # One rank for each node is what `auto` means without GPUs, so they must not share one.
    spread = cluster.workers == "auto" and not per_worker
    return Placement(workers, cpus, per_worker, "SPREAD" if spread else cluster.placement)


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}" + ("" if number == 1 else "s")

"""How many ranks, with what, on the cluster as it is: a pure decision, and the wait for room."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gemfleet.train.errors import UserError

from .config import ClusterConfig

Resources = Mapping[str, float]
POLL_SECONDS = 1.0


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


def place(cluster: ClusterConfig, nodes: Sequence[Resources]) -> Placement:
    """The ranks for a cluster whose living nodes have these total resources."""
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    per_worker = (1 if gpus else 0) if cluster.gpus_per_worker == "auto" else cluster.gpus_per_worker
    if cluster.workers != "auto":
        workers = cluster.workers
    elif per_worker:
        workers = max(1, gpus)
    else:
        workers = max(1, sum(1 for node in nodes if node.get("CPU", 0) >= 1))
    cpus = 1.0 if cluster.cpus_per_worker == "auto" else float(cluster.cpus_per_worker)
    # One rank for each node is what `auto` means without GPUs, so they must not share one.
    spread = cluster.workers == "auto" and not per_worker
    return Placement(workers, cpus, per_worker, "SPREAD" if spread else cluster.placement)


def ranks_that_fit(placement: Placement, nodes: Sequence[Resources]) -> int:
    """How many such ranks these nodes can hold, each rank whole on one node."""
    wanted = placement.resources_per_worker()
    return sum(min(int(node.get(kind, 0) / amount + 1e-9) for kind, amount in wanted.items()) for node in nodes)


def wait_for_room(
    placement: Placement,
    wait_seconds: float,
    nodes: Callable[[], Sequence[Resources]],
    tell: Callable[[str], None],
) -> None:
    """Return once all ranks fit on what is free; UserError saying what is asked and what there is after `wait_seconds`."""
    deadline = time.monotonic() + wait_seconds
    told = False
    while (fitting := ranks_that_fit(placement, nodes())) < placement.workers:
        if time.monotonic() >= deadline:
            raise UserError(
                f"the cluster has no room: asked for {placement.describe()}, but {_total(nodes())} are free, enough for "
                f"{fitting}; waited {wait_seconds:g} s (cluster.wait_for_resources_s). Lower cluster.workers, or add nodes"
            )
        if not told:
            tell(f"waiting up to {wait_seconds:g} s for room: {placement.describe()}; {fitting} fit now")
            told = True
        time.sleep(min(POLL_SECONDS, max(0.05, deadline - time.monotonic())))


def _total(nodes: Sequence[Resources]) -> str:
    cpus, gpus = (sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
    return f"{_count(cpus, 'CPU')} and {_count(gpus, 'GPU')} on {_count(len(nodes), 'node')}"


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}" + ("" if number == 1 else "s")

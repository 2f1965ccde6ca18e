"""How many ranks, with what, on the cluster as it is: a pure decision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gemfleet.cluster.inventory import KIND_RESOURCE, Node, of_kind
from gemfleet.train.planning.devices import GPUS

from .config.schema import ClusterConfig, WorkerRange


@dataclass(frozen=True)
class Placement:
    """Ranks of a run and what each reserves. kind: of their GPUs, empty where it is all one."""

    workers: int
    cpus_per_worker: float
    gpus_per_worker: int
    strategy: str
    kind: str = ""

    def resources_per_worker(self) -> dict[str, float]:
        # A node has 1 of the resource that names its kind. A tiny share keeps the rank to such nodes, and no rank out.
        kind = {f"{KIND_RESOURCE}{self.kind}": 0.001} if self.kind else {}
        return {"CPU": self.cpus_per_worker, **({"GPU": 1.0} if self.gpus_per_worker else {}), **kind}

    def describe(self) -> str:
        gpu = f" and 1 {self.kind or 'GPU'}" if self.gpus_per_worker else ""
        return f"{_count(self.workers, 'rank')} with {_count(self.cpus_per_worker, 'CPU')}{gpu} each"


def place(cluster: ClusterConfig, nodes: Sequence[Node]) -> Placement:
    """The ranks for a cluster of these living nodes, by all that they have; of an elastic run the fewest."""
    kind = choose_kind(cluster, nodes)
    gpus = sum(int(node.gpus) for node in of_kind(nodes, kind))
    per_worker = (1 if gpus else 0) if cluster.gpus_per_worker == "auto" else cluster.gpus_per_worker
    if isinstance(cluster.workers, WorkerRange):
        workers = cluster.workers.min
    elif cluster.workers != "auto":
        workers = cluster.workers
    elif per_worker:
        workers = max(1, gpus)
    else:
        workers = max(1, sum(1 for node in nodes if node.cpus >= 1))
    cpus = 1.0 if cluster.cpus_per_worker == "auto" else float(cluster.cpus_per_worker)
    # One rank for each node is what `auto` means without GPUs, so they must not share one.
    spread = cluster.workers == "auto" and not per_worker
    return Placement(workers, cpus, per_worker, "SPREAD" if spread else cluster.placement, kind if per_worker else "")


def gpu_kinds(nodes: Sequence[Node]) -> dict[str, int]:
    """GPUs of the cluster by what Ray calls them; empty where it does not know."""
    kinds: Counter[str] = Counter()
    for node in nodes:
        kinds[node.kind] += int(node.gpus)
    return {kind: number for kind, number in kinds.items() if number}


def choose_kind(cluster: ClusterConfig, nodes: Sequence[Node]) -> str:
    """The kind of GPUs to use, empty where there is only one.

    Ranks do equal shares of every step, so in a mixture the fastest wait for the slowest. The kind whose GPUs are
    fastest together by their data sheets is taken, or the most numerous where a sheet is not known.
    """
    kinds = gpu_kinds(nodes)
    if cluster.gpu_kind is not None or len(kinds) < 2:
        return cluster.gpu_kind or ""
    speeds = {kind: sheet_tflops(kind) for kind in kinds}
    known = all(speeds.values())
    return max(kinds, key=lambda kind: (kinds[kind] * ((speeds[kind] or 1.0) if known else 1.0), kind))


def mixture_note(placement: Placement, nodes: Sequence[Node]) -> str | None:
    """What to tell a person where the cluster has GPUs of several kinds and the run uses some of them."""
    kinds = gpu_kinds(nodes)
    if len(kinds) < 2 or not placement.gpus_per_worker:
        return None
    listed = ", ".join(f"{number} {kind or 'unnamed'}" for kind, number in sorted(kinds.items()))
    return f"the cluster has {listed} GPUs; the run uses {placement.kind or 'unnamed'} only (cluster.gpu_kind chooses)"


def sheet_tflops(kind: str) -> float | None:
    """The peak rate on the data sheet of what Ray calls `kind`; the lowest of several models, None for none."""
    name = kind.lower().removesuffix("g")
    exact = [device.tflops for key, device in GPUS.items() if key == name]
    return min(exact or [device.tflops for key, device in GPUS.items() if key.startswith(f"{name}-")], default=None)


def grown(placement: Placement, cluster: ClusterConfig, room: int) -> Placement:
    """The placement with more ranks, where the run is elastic and there is room; at most its maximum."""
    if not isinstance(cluster.workers, WorkerRange):
        return placement
    return replace(placement, workers=max(placement.workers, min(cluster.workers.max, room)))


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}" + ("" if number == 1 else "s")

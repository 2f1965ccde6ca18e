"""Decides how many ranks a run gets on a cluster, and what each reserves. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gemfleet.cluster.inventory import KIND_RESOURCE, Node, of_kind
from gemfleet.train.planning.devices import GPUS

from .config.cluster import ANY_KIND, ClusterConfig, WorkerRange


@dataclass(frozen=True)
class Placement:
    """How many ranks a run has, and what each reserves.

    strategy: Ray's placement strategy; kind: what Ray calls the ranks' GPUs, empty where any will do
    mixed: whether GPUs of several kinds serve together, each rank with a share by its speed
    """

    ranks: int
    cpus_per_rank: float
    gpus_per_rank: int
    strategy: str
    kind: str = ""
    mixed: bool = False

    def resources_per_rank(self) -> dict[str, float]:
        # A node has 1 of the resource that names its kind. A tiny share keeps ranks on such nodes and has room for all.
        kind = {f"{KIND_RESOURCE}{self.kind}": 0.001} if self.kind else {}
        return {"CPU": self.cpus_per_rank, **({"GPU": 1.0} if self.gpus_per_rank else {}), **kind}

    def describe(self) -> str:
        gpu = f" and 1 {self.kind or 'GPU'}" if self.gpus_per_rank else ""
        return f"{_count(self.ranks, 'rank')} with {_count(self.cpus_per_rank, 'CPU')}{gpu} each"


def place(cluster: ClusterConfig, nodes: Sequence[Node], groups_of: int = 1) -> Placement:
    """The ranks of a run on these living nodes, by all that the nodes have. An elastic run gets its fewest.

    groups_of: the ranks that share each pass; `auto` makes whole groups
    """
    kind = choose_kind(cluster, nodes)
    gpus = sum(int(node.gpus) for node in of_kind(nodes, kind))
    per_rank = (1 if gpus else 0) if cluster.gpus_per_worker == "auto" else cluster.gpus_per_worker
    if isinstance(cluster.workers, WorkerRange):
        ranks = cluster.workers.min
    elif cluster.workers != "auto":
        ranks = cluster.workers
    elif per_rank:
        ranks = max(1, gpus)
    else:
        ranks = max(1, sum(1 for node in nodes if node.cpus >= 1))
    if cluster.workers == "auto":
        ranks = max(groups_of, ranks - ranks % groups_of)
    cpus = 1.0 if cluster.cpus_per_worker == "auto" else float(cluster.cpus_per_worker)
    # Without GPUs `auto` means one rank for each node, so two ranks must not share a node.
    spread = cluster.workers == "auto" and not per_rank
    mixed = bool(per_rank) and cluster.gpu_kind == ANY_KIND
    strategy = "SPREAD" if spread else cluster.placement
    return Placement(ranks, cpus, per_rank, strategy, kind if per_rank else "", mixed)


def gpu_kinds(nodes: Sequence[Node]) -> dict[str, int]:
    """The number of GPUs by their kind, which is empty where Ray does not know it."""
    kinds: Counter[str] = Counter()
    for node in nodes:
        kinds[node.kind] += int(node.gpus)
    return {kind: number for kind, number in kinds.items() if number}


def choose_kind(cluster: ClusterConfig, nodes: Sequence[Node]) -> str:
    """The kind of GPUs to use. Empty where there is only one kind, or where all kinds are asked for.

    Ranks do equal shares of a step unless a person asks for all kinds, so in a mixture fast GPUs would wait for slow
    ones. Chooses the kind whose GPUs are fastest together by their data sheets. Where a data sheet is not known,
    chooses the most numerous kind.
    """
    if cluster.gpu_kind == ANY_KIND:
        return ""
    kinds = gpu_kinds(nodes)
    if cluster.gpu_kind is not None or len(kinds) < 2:
        return cluster.gpu_kind or ""
    speeds = {kind: sheet_tflops(kind) for kind in kinds}
    known = all(speeds.values())
    return max(kinds, key=lambda kind: (kinds[kind] * ((speeds[kind] or 1.0) if known else 1.0), kind))


def mixture_note(placement: Placement, nodes: Sequence[Node]) -> str | None:
    """A sentence for the person if the cluster has GPUs of several kinds: whether the run uses one or all."""
    kinds = gpu_kinds(nodes)
    if len(kinds) < 2 or not placement.gpus_per_rank:
        return None
    listed = ", ".join(f"{number} {kind or 'unnamed'}" for kind, number in sorted(kinds.items()))
    if placement.mixed:
        return f"the cluster has {listed} GPUs; the run uses all kinds, and each rank gets a share by its speed"
    return f"the cluster has {listed} GPUs; the run uses {placement.kind or 'unnamed'} only (cluster.gpu_kind chooses)"


def sheet_tflops(kind: str) -> float | None:
    """The peak rate on the data sheet of `kind`, in TFLOP/s. The lowest of several models, None for an unknown kind."""
    name = kind.lower().removesuffix("g")
    exact = [device.tflops for key, device in GPUS.items() if key == name]
    return min(exact or [device.tflops for key, device in GPUS.items() if key.startswith(f"{name}-")], default=None)


def grown(placement: Placement, cluster: ClusterConfig, room: int, groups_of: int = 1) -> Placement:
    """The placement of an elastic run with as many ranks as there is room for, at most its maximum.

    groups_of: as in `place`
    """
    if not isinstance(cluster.workers, WorkerRange):
        return placement
    most = min(cluster.workers.max, room)
    return replace(placement, ranks=max(placement.ranks, most - most % groups_of))


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}" + ("" if number == 1 else "s")

"""Where ranks go: a pure decision over what the nodes have."""

from __future__ import annotations

from gemfleet.cluster.inventory import Node
from gemfleet.launcher.config import ClusterConfig
from gemfleet.launcher.placement import Placement, place


def node(cpus: float, gpus: float = 0.0) -> Node:
    return Node("id", "10.0.0.1", "host", False, cpus, gpus, 0.0, 0.0, 0, 0)


GPU_NODES = [node(16, 8), node(16, 4), node(4)]
CPU_NODES = [node(4), node(2), node(0)]


def test_auto_takes_every_gpu_busy_or_not() -> None:
    assert place(ClusterConfig(), GPU_NODES) == Placement(12, 1.0, 1, "PACK")


def test_auto_takes_one_rank_for_each_cpu_node_and_spreads_them() -> None:
    assert place(ClusterConfig(), CPU_NODES) == Placement(2, 1.0, 0, "SPREAD")
    assert place(ClusterConfig(gpus_per_worker=0), GPU_NODES).workers == 3


def test_what_is_given_wins() -> None:
    cluster = ClusterConfig(workers=3, cpus_per_worker=2.0, gpus_per_worker=0, placement="SPREAD")
    assert place(cluster, GPU_NODES) == Placement(3, 2.0, 0, "SPREAD")
    assert place(cluster, GPU_NODES).describe() == "3 ranks with 2 CPUs each"

"""Where ranks go: a pure decision over what nodes have, and a wait that ends with what is asked and what there is."""

from __future__ import annotations

import pytest
from gemfleet.launcher.config import ClusterConfig
from gemfleet.launcher.placement import Placement, place, ranks_that_fit, wait_for_room
from gemfleet.train.errors import UserError

GPU_NODES = [{"CPU": 16.0, "GPU": 8.0}, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 4.0}]
CPU_NODES = [{"CPU": 4.0}, {"CPU": 2.0}, {"CPU": 0.0}]


def test_auto_takes_every_gpu() -> None:
    assert place(ClusterConfig(), GPU_NODES) == Placement(12, 1.0, 1, "PACK")


def test_auto_takes_one_rank_for_each_cpu_node_and_spreads_them() -> None:
    assert place(ClusterConfig(), CPU_NODES) == Placement(2, 1.0, 0, "SPREAD")
    assert place(ClusterConfig(gpus_per_worker=0), GPU_NODES).workers == 3


def test_what_is_given_wins() -> None:
    cluster = ClusterConfig(workers=3, cpus_per_worker=2.0, gpus_per_worker=0, placement="SPREAD")
    assert place(cluster, GPU_NODES) == Placement(3, 2.0, 0, "SPREAD")


def test_a_rank_never_spans_nodes() -> None:
    assert ranks_that_fit(Placement(9, 3.0, 0, "PACK"), CPU_NODES) == 1
    assert ranks_that_fit(Placement(9, 4.0, 1, "PACK"), GPU_NODES) == 8


def test_too_few_resources_names_both_sides_and_stops_waiting() -> None:
    told: list[str] = []
    with pytest.raises(UserError, match=r"asked for 4 ranks with 2 CPUs each, but 6 CPUs and 0 GPUs on 3 nodes are free"):
        wait_for_room(Placement(4, 2.0, 0, "PACK"), 0.1, lambda: CPU_NODES, told.append)
    assert len(told) == 1


def test_waiting_ends_as_soon_as_there_is_room() -> None:
    states = iter([[{"CPU": 1.0}], [{"CPU": 1.0}], [{"CPU": 4.0}]])
    wait_for_room(Placement(2, 1.0, 0, "PACK"), 30.0, lambda: next(states), lambda text: None)
    assert next(states, None) is None

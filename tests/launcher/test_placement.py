"""Where ranks go: a pure decision over what the nodes have."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gemfleet.cluster.inventory import Node
from gemfleet.launcher.config.cluster import ClusterConfig, WorkerRange
from gemfleet.launcher.config.schema import LaunchConfig
from gemfleet.launcher.placement import Placement, gpu_kinds, grown, mixture_note, place, sheet_tflops
from gemfleet.train.config.errors import explain
from pydantic import ValidationError


def node(cpus: float, gpus: float = 0.0) -> Node:
    return Node("id", "10.0.0.1", "host", False, cpus, gpus, 0.0, 0.0, 0, 0)


GPU_NODES = [node(16, 8), node(16, 4), node(4)]
CPU_NODES = [node(4), node(2), node(0)]


def test_auto_takes_every_gpu_busy_or_not() -> None:
    assert place(ClusterConfig(), GPU_NODES) == Placement(12, 1.0, 1, "PACK")


def test_auto_takes_one_rank_for_each_cpu_node_and_spreads_them() -> None:
    assert place(ClusterConfig(), CPU_NODES) == Placement(2, 1.0, 0, "SPREAD")
    assert place(ClusterConfig(gpus_per_worker=0), GPU_NODES).ranks == 3


def test_what_is_given_wins() -> None:
    cluster = ClusterConfig(workers=3, cpus_per_worker=2.0, gpus_per_worker=0, placement="SPREAD")
    assert place(cluster, GPU_NODES) == Placement(3, 2.0, 0, "SPREAD")
    assert place(cluster, GPU_NODES).describe() == "3 ranks with 2 CPUs each"


def test_an_elastic_run_takes_what_there_is_between_its_bounds() -> None:
    cluster = ClusterConfig.model_validate({"workers": {"min": 2, "max": 4}})
    smallest = place(cluster, CPU_NODES)
    assert smallest.ranks == 2
    assert [grown(smallest, cluster, room).ranks for room in (0, 2, 3, 9)] == [2, 2, 3, 4]
    fixed = ClusterConfig(workers=3)
    assert grown(place(fixed, CPU_NODES), fixed, 9).ranks == 3


def test_ranks_that_share_passes_come_in_whole_groups() -> None:
    assert [place(ClusterConfig(), GPU_NODES, size).ranks for size in (1, 5, 8, 16)] == [12, 10, 8, 16]
    elastic = ClusterConfig(workers=WorkerRange(min=2, max=7))
    smallest = place(elastic, CPU_NODES, 2)
    assert [grown(smallest, elastic, room, 2).ranks for room in (0, 3, 5, 9)] == [2, 2, 4, 6]


@pytest.mark.parametrize(
    ("size", "cluster", "told"),
    [
        (2, {"workers": 3}, "context_parallel is 2, but cluster.workers is 3, .*multiple of 2 workers"),
        (4, {"workers": {"min": 2, "max": 8}}, "context_parallel is 4, but cluster.workers is 2"),
        ("auto", {"workers": {"min": 2, "max": 8}}, "context_parallel is auto, .*but cluster.workers is a range"),
        ("auto", {"gpu_kind": "any"}, "cluster.gpu_kind any .*context_parallel is auto.*one kind of GPU"),
    ],
)
def test_workers_that_form_no_whole_groups_of_one_kind_are_refused(size: object, cluster: object, told: str) -> None:
    train = {"model": "demo", "data": {"train": "x"}, "context_parallel": size}
    with pytest.raises(ValidationError, match=told):
        LaunchConfig.model_validate({"train": train, "cluster": cluster})


@pytest.mark.parametrize(
    ("workers", "told"),
    [
        ({"min": 3, "max": 2}, "cluster.workers: min is 3 and max 2"),
        ({"min": 1}, "cluster.workers.max: missing; give a whole number of at least 1"),
        ({"min": 0, "max": 2}, "cluster.workers.min: found 0; give a whole number of at least 1"),
        ({"max": 2, "mni": 1}, "cluster.workers.mni: unknown key; did you mean `min`?"),
        ("many", "give `auto` or a whole number of at least 1 or a section with the keys `min`, `max`"),
    ],
)
def test_wrong_numbers_of_workers_are_one_sentence_each(workers: object, told: str) -> None:
    content = {"train": {"model": "demo", "data": {"train": "x"}}, "cluster": {"workers": workers}}
    with pytest.raises(ValidationError) as caught:
        LaunchConfig.model_validate(content)
    (line,) = explain(caught.value, LaunchConfig)
    assert told in line


def test_of_several_kinds_of_gpus_one_is_chosen_and_told() -> None:
    mixed = [replace(node(16, 8), kind="L4"), replace(node(16, 2), kind="H100"), node(4)]
    assert gpu_kinds(mixed) == {"L4": 8, "H100": 2}
    chosen = place(ClusterConfig(), mixed)
    assert (chosen.ranks, chosen.kind) == (2, "H100")  # 2 x 989 TFLOP/s beat 8 x 121
    assert chosen.resources_per_rank() == {"CPU": 1.0, "GPU": 1.0, "accelerator_type:H100": 0.001}
    note = mixture_note(chosen, mixed)
    assert note == "the cluster has 2 H100, 8 L4 GPUs; the run uses H100 only (cluster.gpu_kind chooses)"
    other = place(ClusterConfig(gpu_kind="L4"), mixed)
    assert (other.ranks, other.describe()) == (8, "8 ranks with 1 CPU and 1 L4 each")
    unknown = [replace(node(16, 8), kind="X1"), replace(node(16, 2), kind="H100")]
    assert place(ClusterConfig(), unknown).kind == "X1"
    assert place(ClusterConfig(gpus_per_worker=0), mixed).kind == ""
    assert mixture_note(place(ClusterConfig(), GPU_NODES), GPU_NODES) is None


def test_all_kinds_of_gpus_serve_together_if_asked_to() -> None:
    nodes = [replace(node(16, 8), kind="L4"), replace(node(16, 2), kind="H100"), node(4)]
    every = place(ClusterConfig(gpu_kind="any"), nodes)
    assert (every.ranks, every.kind, every.mixed) == (10, "", True)
    assert every.resources_per_rank() == {"CPU": 1.0, "GPU": 1.0}
    assert "the run uses all kinds, and each rank gets a share by its speed" in (mixture_note(every, nodes) or "")
    assert not place(ClusterConfig(gpu_kind="any", gpus_per_worker=0), nodes).mixed


def test_ray_names_of_gpus_are_found_on_data_sheets() -> None:
    assert [sheet_tflops(kind) for kind in ("H100", "A100", "A100-80G", "A10G", "T4")] == [989.4, 312, 312, 125, 8.1]
    assert sheet_tflops("TPU-V4") is None

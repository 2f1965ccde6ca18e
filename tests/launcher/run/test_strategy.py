"""`strategy: auto` on a cluster: what its nodes have, and what is told of the choice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from gemfleet.cluster.inventory import Node
from gemfleet.launcher.config.load import dump_config, load_config
from gemfleet.launcher.config.schema import LaunchConfig
from gemfleet.launcher.placement import Placement
from gemfleet.launcher.plan.dry_run import describe_plan
from gemfleet.launcher.plan.rank_devices import NodeMemory, all_known, devices_by_kind, least_devices, node_memory
from gemfleet.launcher.plan.this_machine import describe_here, settled_here
from gemfleet.launcher.run.batch_search.kinds import with_kinds
from gemfleet.launcher.run.strategy import blind_sentence, for_all_kinds
from gemfleet.train.batch_finder.decision import planned_rows
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.planning import SIZES
from gemfleet.train.planning.auto_strategy import needs_devices, settle_strategy, settled_blindly
from support.tiny_model import save_tiny_gemma3

GIB = 2**30
GPU, CPU = Placement(4, 1.0, 1, "PACK"), Placement(4, 2.0, 0, "PACK")


def launch_config(**train: Any) -> LaunchConfig:
    train = {"model": "x", "data": {"train": "x.jsonl"}, **train}
    return LaunchConfig.model_validate({"train": train, "cluster": {"workers": 4}})


def train_config(**train: Any) -> TrainConfig:
    return launch_config(**train).train


def node(address: str, bundles: int, gibibytes: int, gpus: tuple[int, ...] = (), bf16: bool = True) -> NodeMemory:
    return NodeMemory(address, bundles, gibibytes * GIB, tuple(size * GIB for size in gpus), bf16)


def test_the_smallest_gpu_counts() -> None:
    nodes = [node("10.0.0.1", 2, 64, (80, 80)), node("10.0.0.2", 2, 64, (80, 40))]
    devices = least_devices(train_config(), GPU, nodes)
    assert (devices.ranks, devices.memory_bytes, devices.kind, devices.dtype) == (4, 40 * GIB, "cuda", "bf16")


def test_ranks_on_cpus_share_the_memory_of_their_node() -> None:
    nodes = [node("10.0.0.1", 8, 64), node("10.0.0.2", 1, 32, bf16=False)]
    devices = least_devices(train_config(), CPU, nodes)
    assert devices.memory_bytes == 16 * GIB - 400 * 2**20  # four ranks may lie on the first node
    assert (devices.kind, devices.dtype) == ("cpu", "fp32")
    assert least_devices(train_config(precision="bf16"), CPU, nodes).dtype == "bf16"


def test_a_limit_in_the_configuration_counts() -> None:
    limited = train_config(batch={"device_memory_limit": "12GiB"})
    assert least_devices(limited, GPU, [node("10.0.0.1", 4, 64, (80,))]).memory_bytes == 12 * GIB


def test_gpus_that_tell_nothing_of_themselves_leave_no_plan_and_are_told() -> None:
    silent = [node("10.0.0.8", 4, 64, (80,)), node("10.0.0.9", 4, 64)]
    assert all_known(GPU, silent[:1])
    assert not all_known(GPU, silent)
    assert not all_known(GPU, [])
    assert all_known(CPU, silent)
    assert "ddp, activation checkpointing off; no plan" in blind_sentence(settled_blindly(train_config()))


def test_the_slowest_gpu_counts_for_speed_and_for_what_it_can_compute_in() -> None:
    nodes = [replace(node("10.0.0.1", 1, 64, (80,)), gpu_names=(name,)) for name in ("NVIDIA H100", "Tesla T4")]
    assert [least_devices(train_config(), GPU, found).gpu for found in (nodes[:1], nodes)] == [
        "NVIDIA H100",
        "Tesla T4",
    ]
    assert [least_devices(train_config(), GPU, found).dtype for found in (nodes[:1], nodes)] == ["bf16", "fp32"]


def test_of_several_kinds_each_has_the_rows_of_its_memory_and_all_compute_alike() -> None:
    names = ("NVIDIA L4", "NVIDIA H100 80GB HBM3", "Tesla T4")
    nodes = [
        replace(node("10.0.0.1", 2, 64, (22, 74)), gpu_names=names[:2]),
        replace(node("10.0.0.2", 2, 64, (22, 14)), gpu_names=(names[0], names[2])),
    ]
    train, mixed = train_config(lora={"r": 4}), replace(GPU, mixed=True)
    kinds = devices_by_kind(train, mixed, nodes)
    assert [(kind.gpu, kind.memory_bytes // GIB, kind.dtype) for kind in kinds] == [
        (names[1], 74, "fp32"),
        (names[0], 22, "fp32"),
        (names[2], 14, "fp32"),
    ]
    least = least_devices(train, mixed, nodes)
    plan = for_all_kinds(settle_strategy(train, SIZES["1b"], least), kinds)
    assert plan.config.precision == "fp32"
    rows = {kind.gpu: planned_rows(plan.config, replace(plan, devices=kind), 64).rows for kind in plan.kinds}
    assert rows[names[1]] > rows[names[0]] >= rows[names[2]]
    ready = with_kinds(plan.config, {gpu: plan.config.with_micro(number) for gpu, number in rows.items()})
    assert ready.batch.micro == min(rows.values())
    assert {name: ready.batch.for_gpu(name).rows_per_pass for name in rows} == rows
    assert ready.batch.for_gpu("another").rows_per_pass == ready.batch.micro


def test_what_a_node_answers_is_read() -> None:
    facts = {
        "memory": 64 * GIB,
        "container": 32 * GIB,
        "gpus": ["NVIDIA H100 80GB HBM3, 81559 MiB"],
        "bf16_gains": True,
    }
    here = Node("a", "10.0.0.1", "host", True, 8.0, 1.0, 8.0, 1.0, 64 * GIB, GIB)
    found = node_memory(here, GPU, facts)
    assert (found.bundles, found.memory_bytes, found.gpu_bytes) == (1, 32 * GIB, (81559 * 2**20,))


def test_a_run_that_is_launched_again_may_choose_again(tmp_path: Path) -> None:
    path = tmp_path / "config.resolved.yaml"
    path.write_text(dump_config(launch_config()))
    read = load_config(path)
    assert read == launch_config()
    assert needs_devices(read.train)
    named = {"strategy": "ddp", "batch": {"micro": 2}, "activation_checkpointing": "off", "loss_chunk_rows": 64}
    path.write_text(dump_config(launch_config(**named)))
    assert load_config(path) == launch_config(**named)
    assert not needs_devices(load_config(path).train)


def test_the_plan_of_a_dry_run_names_every_way(tmp_path: Path) -> None:
    save_tiny_gemma3(tmp_path)
    plan = describe_plan(launch_config(model=str(tmp_path)), tmp_path)
    assert plan["strategy"].startswith("auto: the first that fits a rank's device, of (GiB) ddp ")
    assert "; fsdp2, kept gathered " in plan["strategy"]
    assert plan["recomputation"] == "where memory needs it"
    unknown = describe_plan(launch_config(model="google/gemma-3-1b-it"), tmp_path)
    assert unknown["strategy"] == "auto, settled by the plan once model and cluster are known"
    assert "by the plan, or by probes" in unknown["batch"]


MACHINE: dict[str, Any] = {"cores": 2, "memory": 24 * GIB, "container": None, "bf16_gains": False, "gpus": []}


def test_a_dry_run_says_what_this_machine_would_settle_on_and_why(tmp_path: Path) -> None:
    save_tiny_gemma3(tmp_path)
    config = launch_config(model=str(tmp_path), data={"train": "x.jsonl", "max_length": 256})
    plan = describe_plan(config, tmp_path, settled_here(config, MACHINE))
    assert plan["strategy"].startswith("for 4 ranks: ddp: the whole base fits on every rank (takes 0.")
    assert "; activation checkpointing is off (on this machine" in plan["strategy"]
    assert plan["recomputation"] == "off"
    assert "4 packed rows of a rank in memory at once by the plan, as a pass of 1,024 tokens is long" in plan["batch"]
    gpus = ["NVIDIA H200, 143771 MiB"] * 4
    plan = describe_plan(config, tmp_path, settled_here(config, {**MACHINE, "gpus": gpus}))
    assert "8 packed rows of a rank in memory at once by the plan, as a pass holds all rows" in plan["batch"]
    assert plan["batch"].endswith("or by probes, if the run is long enough")


def test_a_dry_run_tells_what_a_run_here_would_be_refused_for(tmp_path: Path) -> None:
    save_tiny_gemma3(tmp_path)
    limited = launch_config(model=str(tmp_path), batch={"device_memory_limit": "420MiB"})
    plan = describe_here(limited, tmp_path)
    assert plan["strategy"].startswith("refused on this machine: train.strategy is auto, but nothing fits: ")
    assert plan["recomputation"] == "where memory needs it"


def test_a_dry_run_says_nothing_of_this_machine_where_another_trains(tmp_path: Path) -> None:
    save_tiny_gemma3(tmp_path)
    config = launch_config(model=str(tmp_path))
    elsewhere = config.model_copy(update={"cluster": config.cluster.model_copy(update={"address": "10.0.0.1:6379"})})
    assert settled_here(config, MACHINE) is not None
    assert settled_here(elsewhere, MACHINE) is None
    assert settled_here(launch_config(), MACHINE) is None

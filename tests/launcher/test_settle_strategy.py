"""`strategy: auto` on a cluster: what its nodes have, and what is told of the choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gemfleet.cluster.inventory import Node
from gemfleet.launcher.config import LaunchConfig
from gemfleet.launcher.config_file import dump_config, load_config
from gemfleet.launcher.placement import Placement
from gemfleet.launcher.plan import describe_plan
from gemfleet.launcher.settle_strategy import NodeMemory, least_devices, node_memory
from gemfleet.train.config import TrainConfig
from gemfleet.train.errors import UserError
from tiny_model import save_tiny_gemma3

GIB = 2**30
GPU, CPU = Placement(4, 1.0, 1, "PACK"), Placement(4, 2.0, 0, "PACK")


def launch_config(**train: Any) -> LaunchConfig:
    train = {"model": "x", "data": {"train": "x.jsonl"}, "strategy": "auto", **train}
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


def test_gpus_that_tell_nothing_of_themselves_are_named() -> None:
    with pytest.raises(UserError, match=r"nvidia-smi tells nothing of the GPUs of 10\.0\.0\.9.*set train\.strategy"):
        least_devices(train_config(), GPU, [node("10.0.0.9", 4, 64)])


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
    assert "activation_checkpointing" not in read.train.model_fields_set
    path.write_text(dump_config(launch_config(activation_checkpointing="off")))
    assert "activation_checkpointing" in load_config(path).train.model_fields_set


def test_the_plan_of_a_dry_run_names_every_way(tmp_path: Path) -> None:
    save_tiny_gemma3(tmp_path)
    plan = describe_plan(launch_config(model=str(tmp_path)), tmp_path)
    assert plan["strategy"].startswith("auto: the first that fits a rank's device, of (GiB) ddp ")
    assert "; fsdp2, kept gathered " in plan["strategy"]
    assert plan["recomputation"] == "where memory needs it"
    unknown = describe_plan(launch_config(model="google/gemma-3-1b-it"), tmp_path)
    assert unknown["strategy"] == "auto, settled by the plan once model and cluster are known"

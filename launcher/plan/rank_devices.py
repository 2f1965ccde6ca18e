"""Computes what each rank of a run has at least, by the devices of the nodes with room for it. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gemfleet.cluster.inventory import Node
from gemfleet.launcher.placement import Placement
from gemfleet.train.batch_finder.worth import sheet_of
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.planning.auto_strategy import RankDevices
from gemfleet.train.planning.options import DeviceKind

MIB = 2**20


@dataclass(frozen=True)
class NodeMemory:
    """The devices of a node.

    bundles: ranks that have room there; memory_bytes: of the machine or of its container; gpu_bytes: of each GPU
    bf16_gains: whether its CPU computes faster in bf16; gpu_names: as nvidia-smi gives them
    """

    address: str
    bundles: int
    memory_bytes: int
    gpu_bytes: tuple[int, ...]
    bf16_gains: bool
    gpu_names: tuple[str, ...] = ()


def all_known(placement: Placement, nodes: Sequence[NodeMemory]) -> bool:
    """Whether the nodes answered all that a plan needs."""
    return bool(nodes) and not (placement.gpus_per_rank and any(not node.gpu_bytes for node in nodes))


def node_memory(node: Node, placement: Placement, facts: dict[str, Any]) -> NodeMemory:
    """The devices of a node. facts: the answer of `device_facts`"""
    return NodeMemory(
        address=node.address,
        bundles=node.bundles(placement.cpus_per_rank, placement.gpus_per_rank, free=False),
        memory_bytes=min(facts["memory"], facts["container"] or facts["memory"]),
        gpu_bytes=tuple(int(line.rpartition(",")[2].split()[0]) * MIB for line in facts["gpus"]),
        bf16_gains=facts["bf16_gains"],
        gpu_names=tuple(line.rpartition(",")[0] for line in facts["gpus"]),
    )


def devices_by_kind(train: TrainConfig, placement: Placement, nodes: Sequence[NodeMemory]) -> tuple[RankDevices, ...]:
    """What each rank has on GPUs of each kind, by their names. All compute in the dtype of the least."""
    common = least_devices(train, placement, nodes)
    names = sorted({name for node in nodes for name in node.gpu_names})
    by_name = [[_only(node, name) for node in nodes if name in node.gpu_names] for name in names]
    return tuple(replace(least_devices(train, placement, alike), dtype=common.dtype) for alike in by_name)


def _only(node: NodeMemory, name: str) -> NodeMemory:
    sizes = tuple(size for size, found in zip(node.gpu_bytes, node.gpu_names, strict=True) if found == name)
    return replace(node, gpu_bytes=sizes, gpu_names=(name,) * len(sizes))


def least_devices(train: TrainConfig, placement: Placement, nodes: Sequence[NodeMemory]) -> RankDevices:
    """What each rank has at least on any of these nodes. On CPUs, ranks share a node's memory as if it were full."""
    limit = train.batch.memory_limit_bytes
    names = {name for node in nodes for name in node.gpu_names} if placement.gpus_per_rank else set()
    slowest = min(sorted(names), key=lambda name: sheet_of(name).tflops, default="")
    if placement.gpus_per_rank:
        memory = min(size for node in nodes for size in node.gpu_bytes)
        fp32 = train.precision == "fp32" or (train.precision != "bf16" and not sheet_of(slowest).bf16)
    else:
        memory = min(node.memory_bytes // min(placement.ranks, node.bundles) for node in nodes)
        fp32 = train.precision == "fp32" or (train.precision != "bf16" and not all(node.bf16_gains for node in nodes))
    kind: DeviceKind = "cuda" if placement.gpus_per_rank else "cpu"
    return RankDevices.of(placement.ranks, min(memory, limit or memory), kind, "fp32" if fp32 else "bf16", slowest)

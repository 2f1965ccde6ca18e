"""What a configuration leaves to the plan, settled on a Ray cluster: by the nodes on which the ranks may lie."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from gemfleet.cluster.inventory import Node, answering_nodes, of_kind
from gemfleet.train.auto_strategy import (
    RankDevices,
    Settled,
    is_open,
    needs_devices,
    settle_strategy,
    settled_blindly,
)
from gemfleet.train.batch_finder.worth import sheet_of
from gemfleet.train.config import TrainConfig
from gemfleet.train.planning import shape_of_config
from gemfleet.train.planning.options import DeviceKind
from gemfleet.train.resolve import read_model_config, resolve_model_folder
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from .device_facts import device_facts
from .placement import Placement

if TYPE_CHECKING:
    from .run import Run

MIB = 2**20
ANSWER_SECONDS = 120.0


@dataclass(frozen=True)
class NodeMemory:
    """What a node has: memory of the machine or of its container, and of each GPU, in bytes; names of the GPUs."""

    address: str
    bundles: int
    memory_bytes: int
    gpu_bytes: tuple[int, ...]
    bf16_gains: bool
    gpu_names: tuple[str, ...] = ()


def settle(run: Run, placement: Placement) -> Settled | None:
    """Replace what the configuration leaves open by the plan's choice, which is an event. UserError if nothing fits.

    The micro-batch stays open until the data is known. None where nothing was open, or no plan can be made.

    The file of the run keeps `auto`: a later launch chooses again, for the cluster as it is then.
    """
    train = run.config.train
    if not needs_devices(train):
        return None
    shape = shape_of_config(read_model_config(resolve_model_folder(train.model)), train.model)
    nodes = look_at_nodes(placement)
    settled = (
        settle_strategy(train, shape, least_devices(train, placement, nodes)) if all_known(placement, nodes) else None
    )
    found = settled_blindly(train) if settled is None else settled.config
    if is_open(train):
        sentence = blind_sentence(found) if settled is None else settled.sentence
        facts = {"strategy": found.strategy, "reason": sentence} if settled is None else settled.facts
        run.note(sentence)
        run.registry.add_event(run.id, "strategy", sentence, facts)
    run.config = run.config.model_copy(update={"train": found})
    return settled


def all_known(placement: Placement, nodes: Sequence[NodeMemory]) -> bool:
    """Whether the nodes say what a plan needs to know."""
    return bool(nodes) and not (placement.gpus_per_worker and any(not node.gpu_bytes for node in nodes))


def blind_sentence(found: TrainConfig) -> str:
    return (
        f"strategy: {found.strategy}, activation checkpointing {found.activation_checkpointing}; no plan was made, as "
        "nvidia-smi on the nodes does not tell the memory of the GPUs"
    )


def look_at_nodes(placement: Placement) -> list[NodeMemory]:
    """The nodes with room for a rank, each asked in a task that takes none of it. One that does not answer is left
    out."""
    size = placement.cpus_per_worker, placement.gpus_per_worker
    nodes = [node for node in of_kind(answering_nodes(), placement.kind) if node.bundles(*size, free=False) > 0]
    task = ray.remote(device_facts)
    calls = [task.options(num_cpus=0, scheduling_strategy=_on(node)).remote() for node in nodes]
    answered, _ = ray.wait(calls, num_returns=len(calls), timeout=ANSWER_SECONDS) if calls else ([], [])
    found = []
    for node, call in zip(nodes, calls, strict=True):
        if call in answered:
            with suppress(RayError):
                found.append(node_memory(node, placement, ray.get(call)))
    return found


def node_memory(node: Node, placement: Placement, facts: dict[str, Any]) -> NodeMemory:
    """`facts` as `device_facts` gives them; GPUs as `NAME, 81559 MiB`."""
    return NodeMemory(
        address=node.address,
        bundles=node.bundles(placement.cpus_per_worker, placement.gpus_per_worker, free=False),
        memory_bytes=min(facts["memory"], facts["container"] or facts["memory"]),
        gpu_bytes=tuple(int(line.rpartition(",")[2].split()[0]) * MIB for line in facts["gpus"]),
        bf16_gains=facts["bf16_gains"],
        gpu_names=tuple(line.rpartition(",")[0] for line in facts["gpus"]),
    )


def least_devices(train: TrainConfig, placement: Placement, nodes: Sequence[NodeMemory]) -> RankDevices:
    """What every rank has at least, wherever among these nodes it lies. On a CPU a node may be as full as it can be."""
    limit = train.batch.memory_limit_bytes
    names = {name for node in nodes for name in node.gpu_names} if placement.gpus_per_worker else set()
    slowest = min(sorted(names), key=lambda name: sheet_of(name).tflops, default="")
    if placement.gpus_per_worker:
        memory = min(size for node in nodes for size in node.gpu_bytes)
        fp32 = train.precision == "fp32" or (train.precision != "bf16" and not sheet_of(slowest).bf16)
    else:
        memory = min(node.memory_bytes // min(placement.workers, node.bundles) for node in nodes)
        fp32 = train.precision == "fp32" or (train.precision != "bf16" and not all(node.bf16_gains for node in nodes))
    kind: DeviceKind = "cuda" if placement.gpus_per_worker else "cpu"
    return RankDevices.of(placement.workers, min(memory, limit or memory), kind, "fp32" if fp32 else "bf16", slowest)


def _on(node: Node) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node.id, soft=False)

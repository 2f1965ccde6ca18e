"""`strategy: auto` on a Ray cluster: the plan, asked about the nodes on which the ranks may lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from gemfleet.cluster.inventory import Node, list_nodes, of_kind
from gemfleet.train.auto_strategy import Option, RankDevices, is_open, settle_strategy
from gemfleet.train.config import TrainConfig
from gemfleet.train.device import cpu_gains_from_bf16
from gemfleet.train.errors import UserError
from gemfleet.train.planning import shape_of_config
from gemfleet.train.planning.options import DeviceKind
from gemfleet.train.resolve import read_model_config, resolve_model_folder
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from .device_facts import device_facts
from .placement import Placement

if TYPE_CHECKING:
    from .run import Run

MIB = 2**20
ANSWER_SECONDS = 120.0


@dataclass(frozen=True)
class NodeMemory:
    """What a node has: memory of the machine or of its container, and of each GPU, in bytes."""

    address: str
    bundles: int
    memory_bytes: int
    gpu_bytes: tuple[int, ...]
    bf16_gains: bool


def settle(run: Run, placement: Placement) -> tuple[Option, ...]:
    """Replace what the configuration leaves open by the plan's choice, which is an event. UserError if nothing fits.

    Returns all that fit, where something was open.

    The file of the run keeps `auto`: a later launch chooses again, for the cluster as it is then.
    """
    train = run.config.train
    if not is_open(train):
        return ()
    shape = shape_of_config(read_model_config(resolve_model_folder(train.model)), train.model)
    settled = settle_strategy(train, shape, least_devices(train, placement, look_at_nodes(placement)))
    run.note(settled.sentence)
    run.registry.add_event(run.id, "strategy", settled.sentence, settled.facts)
    run.config = run.config.model_copy(update={"train": settled.config})
    return settled.options


def look_at_nodes(placement: Placement) -> list[NodeMemory]:
    """The nodes with room for a rank, each asked in a task that takes none of it."""
    size = placement.cpus_per_worker, placement.gpus_per_worker
    nodes = [node for node in of_kind(list_nodes(), placement.kind) if node.bundles(*size, free=False) > 0]
    task = ray.remote(node_facts)
    answers = [task.options(num_cpus=0, scheduling_strategy=_on(node)).remote() for node in nodes]
    found = ray.get(answers, timeout=ANSWER_SECONDS)
    return [node_memory(node, placement, facts) for node, facts in zip(nodes, found, strict=True)]


def node_facts() -> dict[str, Any]:
    """Runs on the node."""
    return {**device_facts(), "bf16_gains": cpu_gains_from_bf16()}


def node_memory(node: Node, placement: Placement, facts: dict[str, Any]) -> NodeMemory:
    """`facts` as `node_facts` gives them; GPUs as `NAME, 81559 MiB`."""
    return NodeMemory(
        address=node.address,
        bundles=node.bundles(placement.cpus_per_worker, placement.gpus_per_worker, free=False),
        memory_bytes=min(facts["memory"], facts["container"] or facts["memory"]),
        gpu_bytes=tuple(int(line.rpartition(",")[2].split()[0]) * MIB for line in facts["gpus"]),
        bf16_gains=facts["bf16_gains"],
    )


def least_devices(train: TrainConfig, placement: Placement, nodes: Sequence[NodeMemory]) -> RankDevices:
    """What every rank has at least, wherever among these nodes it lies. On a CPU a node may be as full as it can be."""
    limit = train.batch.memory_limit_bytes
    if placement.gpus_per_worker:
        for node in nodes:
            if not node.gpu_bytes:
                raise UserError(
                    f"train.strategy is {train.strategy}, but nvidia-smi tells nothing of the GPUs of {node.address}, "
                    "whose memory the plan needs; set train.strategy to ddp, or train.fsdp2.reshard_after_forward too"
                )
        memory = min(size for node in nodes for size in node.gpu_bytes)
        fp32 = train.precision == "fp32"
    else:
        memory = min(node.memory_bytes // min(placement.workers, node.bundles) for node in nodes)
        fp32 = train.precision == "fp32" or (train.precision != "bf16" and not all(node.bf16_gains for node in nodes))
    kind: DeviceKind = "cuda" if placement.gpus_per_worker else "cpu"
    return RankDevices.of(placement.workers, min(memory, limit or memory), kind, "fp32" if fp32 else "bf16")


def _on(node: Node) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node.id, soft=False)

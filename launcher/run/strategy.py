"""What a configuration leaves to the plan, settled on a Ray cluster: by the nodes on which the ranks may lie."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import ray
from gemfleet.cluster.inventory import Node, answering_nodes, of_kind
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.model.resolve import read_model_config, resolve_model_folder
from gemfleet.train.planning import shape_of_config
from gemfleet.train.planning.auto_strategy import Settled, is_open, needs_devices, settle_strategy, settled_blindly
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ..placement import Placement
from ..plan.node_devices import device_facts
from ..plan.rank_devices import NodeMemory, all_known, least_devices, node_memory

if TYPE_CHECKING:
    from .launch import Run

ANSWER_SECONDS = 120.0


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


def _on(node: Node) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node.id, soft=False)

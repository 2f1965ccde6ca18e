"""Settles what a configuration leaves to the plan, by the devices of the nodes on which ranks may run."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import ray
from gemfleet.cluster.inventory import answering_nodes, of_kind, only_on
from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.launcher.placement import Placement
from gemfleet.launcher.plan.node_devices import device_facts
from gemfleet.launcher.plan.rank_devices import NodeMemory, all_known, devices_by_kind, least_devices, node_memory
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.data.pictures.peek import holds_pictures
from gemfleet.train.model.resolve import read_model_config, resolve_model_folder
from gemfleet.train.planning import shape_of_config
from gemfleet.train.planning.auto_strategy import (
    RankDevices,
    Settled,
    is_open,
    needs_devices,
    settle_strategy,
    settled_blindly,
)
from ray.exceptions import RayError

from .session import RunSession

ANSWER_SECONDS = 120.0


def settle(run: RunSession, train: TrainConfig, placement: Placement) -> tuple[TrainConfig, Settled | None]:
    """Replace what the settings leave open by the plan's choice, and tell it as an event. Returns settings and plan.

    The micro-batch stays open until the data is known. The plan is None where nothing is open, or where none can be
    made. The run's file keeps `auto`, so a later launch chooses for its own cluster. Raises UserError where nothing
    fits.
    """
    if placement.mixed:
        train = train.with_shares_by_speed()
    if not (needs_devices(train) or placement.mixed):
        return train, None
    shape = shape_of_config(read_model_config(resolve_model_folder(train.model)), train.model)
    nodes = look_at_nodes(placement)
    if all_known(placement, nodes):
        pictures = shape.vision is not None and holds_pictures(train.data)
        plan = settle_strategy(train, shape, least_devices(train, placement, nodes), pictures)
        if placement.mixed:
            plan = for_all_kinds(plan, devices_by_kind(train, placement, nodes))
        settled, sentence, facts = plan.config, plan.sentence, plan.facts
    else:
        plan, settled = None, settled_blindly(train)
        sentence = blind_sentence(settled)
        facts = {"strategy": settled.strategy, "reason": sentence}
    if is_open(train):
        run.tell(EventKind.STRATEGY, sentence, facts)
    return settled, plan


def for_all_kinds(plan: Settled, kinds: tuple[RankDevices, ...]) -> Settled:
    """The plan with the devices of each kind. All ranks compute in one precision, that of the least capable kind."""
    return replace(plan, config=plan.config.model_copy(update={"precision": plan.devices.dtype}), kinds=kinds)


def blind_sentence(found: TrainConfig) -> str:
    return (
        f"strategy: {found.strategy}, activation checkpointing {found.activation_checkpointing}; no plan was made, as "
        "nvidia-smi on the nodes does not tell the memory of the GPUs"
    )


def look_at_nodes(placement: Placement) -> list[NodeMemory]:
    """Ask each node with room for a rank what devices it has, by a task without CPUs. A silent node is left out."""
    size = placement.cpus_per_rank, placement.gpus_per_rank
    nodes = [node for node in of_kind(answering_nodes(), placement.kind) if node.bundles(*size, free=False) > 0]
    task = ray.remote(device_facts)
    calls = [task.options(num_cpus=0, **only_on(node.id)).remote() for node in nodes]
    answered, _ = ray.wait(calls, num_returns=len(calls), timeout=ANSWER_SECONDS) if calls else ([], [])
    found = []
    for node, call in zip(nodes, calls, strict=True):
        if call in answered:
            with suppress(RayError):
                found.append(node_memory(node, placement, ray.get(call)))
    return found

"""Tells for `--dry-run` what the plan would choose here. Looks only at this machine and at the model's files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemfleet.cluster.inventory import Node
from gemfleet.launcher.config.cluster import ClusterConfig, WorkerRange
from gemfleet.launcher.config.schema import LaunchConfig
from gemfleet.launcher.placement import place
from gemfleet.train.data.pictures.peek import holds_pictures
from gemfleet.train.errors import UserError
from gemfleet.train.planning import shape_of_config
from gemfleet.train.planning.auto_strategy import Settled, needs_devices, settle_strategy

from .dry_run import describe_plan, local_model_facts
from .node_devices import device_facts
from .rank_devices import all_known, least_devices, node_memory


def describe_here(config: LaunchConfig, runs_folder: Path) -> dict[str, str]:
    """As `describe_plan`, with the plan's choice for this machine if the run would train on it."""
    try:
        return describe_plan(config, runs_folder, settled_here(config))
    except UserError as refusal:
        return {**describe_plan(config, runs_folder), "strategy": f"refused on this machine: {refusal}"}


def settled_here(config: LaunchConfig, facts: Mapping[str, Any] | None = None) -> Settled | None:
    """The plan's choice for ranks on this machine. Raises UserError where nothing fits.

    None where nothing is open, where the run trains on another cluster, or where model or GPUs are not known yet.
    facts: the answer of `device_facts`; None: asks for it
    """
    train, cluster = config.train, config.cluster
    model = local_model_facts(train.model)
    if model is None or cluster.address not in ("auto", "local") or not needs_devices(train):
        return None
    facts = device_facts() if facts is None else facts
    here = _this_machine(cluster, facts)
    placement = place(cluster, [here], config.ranks_for_each_pass)
    train = train.with_shares_by_speed() if placement.mixed else train
    nodes = [node_memory(here, placement, dict(facts))]
    if not all_known(placement, nodes) or not nodes[0].bundles:
        return None
    shape = shape_of_config(model.config, train.model)
    pictures = shape.vision is not None and holds_pictures(train.data, hub=False)
    return settle_strategy(train, shape, least_devices(train, placement, nodes), pictures)


def _this_machine(cluster: ClusterConfig, facts: Mapping[str, Any]) -> Node:
    """This machine as a node of a local cluster, which has room for all ranks on CPUs."""
    asked = cluster.workers.max if isinstance(cluster.workers, WorkerRange) else cluster.workers
    ranks = 1 if asked == "auto" else asked
    each = 1.0 if cluster.cpus_per_worker == "auto" else cluster.cpus_per_worker
    cpus, gpus = max(float(facts["cores"]), ranks * each), float(len(facts["gpus"]))
    memory = facts["memory"]
    return Node("here", "this machine", "this machine", True, cpus, gpus, cpus, gpus, memory, memory)

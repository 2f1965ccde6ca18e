"""Joins a cluster that runs already, and has ranks' processes start, before this one has imported what a run needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gemfleet.cluster.errors import ClusterError
from gemfleet.cluster.phases import PHASES

if TYPE_CHECKING:
    from gemfleet.cluster.local import Connection
    from gemfleet.launcher.config.schema import LaunchConfig
    from gemfleet.launcher.placement import Placement

JOIN_SECONDS = 1.0


@contextmanager
def joined_early(config: LaunchConfig) -> Iterator[Placement | None]:
    """Yields the placement whose processes start now. None where no cluster runs yet, or it has no room: it is the
    launch itself that waits, and that says what is wrong. Leaves the cluster at the block's end.
    """
    PHASES.enter("imports torch and Ray")
    import torch  # noqa: F401  (before pyarrow and ray: after them it has failed to load in a driver)

    # isort: split
    import ray

    connection: Connection | None = None
    placement: Placement | None = None
    try:
        connection = _join(config)
        placement = _start(config) if connection else None
    except (ClusterError, ray.exceptions.RayError, RuntimeError, OSError):
        pass
    PHASES.enter("imports the launcher")
    try:
        yield placement
    finally:
        if connection is not None:
            connection.close()


def _join(config: LaunchConfig) -> Connection | None:
    from gemfleet.cluster.local import connect

    from .connect import address_of

    address = address_of(config.cluster)
    return None if address == "local" else connect(address, timeout_s=JOIN_SECONDS)


def _start(config: LaunchConfig) -> Placement | None:
    from gemfleet.cluster.inventory import list_nodes
    from gemfleet.launcher.placement import place

    from .training.processes import start_for_training

    nodes = list_nodes()
    placement = place(config.cluster, nodes, config.ranks_for_each_pass)
    size = placement.cpus_per_rank, placement.gpus_per_rank
    if config.train.max_steps == 0 or sum(node.bundles(*size) for node in nodes) < placement.ranks:
        return None
    start_for_training(placement, nodes)
    return placement

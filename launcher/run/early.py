"""Joins a cluster that runs already, and has ranks' processes start, before this one has imported what a run needs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gemfleet.cluster.errors import ClusterError
from gemfleet.cluster.phases import PHASES
from gemfleet.train.collector import uncollected

if TYPE_CHECKING:
    from gemfleet.launcher.config.schema import LaunchConfig

    from .training.processes import Begun

log = logging.getLogger("gemfleet.launcher")
JOIN_SECONDS = 1.0


@contextmanager
def joined_early(config: LaunchConfig, run_id: str | None) -> Iterator[Begun | None]:
    """Yields what has been started. None where no cluster runs yet, or another run is under way, or there is no room:
    the launch itself waits, and says what is wrong. The process has left the cluster at the block's end.

    run_id: of a run that is not new
    """
    PHASES.enter("imports torch and Ray")
    with uncollected(kept=True):
        import torch  # noqa: F401  (before pyarrow and ray: after them it has failed to load in a driver)

        # isort: split
        import ray
        from gemfleet.cluster.local import leave

    begun: Begun | None = None
    try:
        try:
            begun = _join_and_start(config, run_id)
        except (ClusterError, ray.exceptions.RayError, RuntimeError, OSError) as error:
            log.debug("no processes start early: %s", error)
            leave()  # the launch joins anew, and says what is wrong
        PHASES.enter("imports the launcher")
        with uncollected(kept=True):
            import transformers.models.gemma3.modeling_gemma3  # noqa: F401  (with it the base is checked)

            from . import launch  # noqa: F401
        yield begun
    finally:
        leave()


def _join_and_start(config: LaunchConfig, run_id: str | None) -> Begun | None:
    from gemfleet.cluster.inventory import answering_nodes, of_kind
    from gemfleet.cluster.local import connect
    from gemfleet.launcher.placement import place

    from .connect import address_of

    address = address_of(config.cluster)
    if address == "local":
        return None
    connect(address, timeout_s=JOIN_SECONDS)
    if config.train.max_steps == 0 or _others_run(run_id):
        return None
    from .training.processes import start_for_training

    nodes = answering_nodes()
    placement = place(config.cluster, nodes, config.ranks_for_each_pass)
    size = placement.cpus_per_rank, placement.gpus_per_rank
    if sum(node.bundles(*size) for node in of_kind(nodes, placement.kind)) < placement.ranks:
        return None
    return start_for_training(placement, nodes)


def _others_run(run_id: str | None) -> bool:
    """Whether another run has a share of a cluster or waits for one: then it is open when this one has its turn."""
    from gemfleet.launcher.runs.registry import registry_of
    from gemfleet.train.config.home import gemfleet_home

    return any(not run.state.is_terminal and run.id != run_id for run in registry_of(gemfleet_home()).list_runs())

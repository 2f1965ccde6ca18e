"""Connects the driver to Ray while a run lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gemfleet.cluster.errors import ClusterError
from gemfleet.cluster.local import connect, leave, resolve_address
from gemfleet.cluster.network import check_address
from gemfleet.launcher.config.cluster import ClusterConfig, WorkerRange


@contextmanager
def connected(cluster: ClusterConfig) -> Iterator[bool]:
    """Connect to the configured cluster. Yields whether this started it; if so, the cluster ends with the block.

    A process that has joined it early (`joined_early`) is connected already.
    """
    import ray

    if ray.is_initialized():
        try:
            yield False
        finally:
            leave()
        return
    workers = cluster.workers.max if isinstance(cluster.workers, WorkerRange) else cluster.workers
    workers = 1 if workers == "auto" else workers
    cpus = 1.0 if cluster.cpus_per_worker == "auto" else cluster.cpus_per_worker
    connection = connect(address_of(cluster), workers, cpus)
    try:
        yield connection.owned
    finally:
        connection.close()


def address_of(cluster: ClusterConfig) -> str:
    """The address to connect to. `auto` is RAY_ADDRESS, else this machine's running cluster, else `local`."""
    if cluster.address != "auto":
        return cluster.address
    return resolve_address(None) or _cluster_of_this_machine() or "local"


def _cluster_of_this_machine() -> str | None:
    from ray._private.utils import read_ray_address  # private to Ray, so imported only where it is needed

    address: str | None = read_ray_address()
    try:
        if address is not None:
            check_address(address, timeout_s=2.0)
    except ClusterError:
        return None  # the file of a cluster that has ended
    return address

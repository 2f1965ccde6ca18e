"""The driver's connection to Ray for the length of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gemfleet.cluster.errors import ClusterError
from gemfleet.cluster.local import connect, resolve_address
from gemfleet.cluster.network import check_address
from gemfleet.launcher.config.schema import ClusterConfig, WorkerRange


@contextmanager
def connected(cluster: ClusterConfig) -> Iterator[bool]:
    """Attached to the configured cluster. Yields whether it had to be started for the run: then it ends with it."""
    workers = cluster.workers.max if isinstance(cluster.workers, WorkerRange) else cluster.workers
    workers = 1 if workers == "auto" else workers
    cpus = 1.0 if cluster.cpus_per_worker == "auto" else cluster.cpus_per_worker
    connection = connect(address_of(cluster), workers, cpus)
    try:
        yield connection.owned
    finally:
        connection.close()


def address_of(cluster: ClusterConfig) -> str:
    """`auto` as an address: RAY_ADDRESS, else the cluster that `ray start` made on this machine, else `local`."""
    if cluster.address != "auto":
        return cluster.address
    return resolve_address(None) or _cluster_of_this_machine() or "local"


def _cluster_of_this_machine() -> str | None:
    from ray._private.utils import read_ray_address

    address: str | None = read_ray_address()
    try:
        if address is not None:
            check_address(address, timeout_s=2.0)
    except ClusterError:
        return None  # left behind by a cluster that is gone
    return address

"""One Ray cluster of two raylets for all tests of this folder: a head with 2 CPUs and a worker node with 1."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from gemfleet.cluster.inventory import list_nodes
from gemfleet.cluster.local import connect

OBJECT_STORE_BYTES = 100 << 20


@dataclass(frozen=True)
class TwoNodes:
    """Ids of the two nodes; this process is the driver, on the head."""

    head: str
    worker: str


@pytest.fixture(scope="module")
def two_nodes(s3: None) -> Iterator[TwoNodes]:
    temp = tempfile.mkdtemp(prefix="gf-ray-")  # short: a socket's path may have 107 bytes
    patch = pytest.MonkeyPatch()
    # Also keeps the file by which `auto` finds a cluster away from a real one of this machine.
    patch.setenv("RAY_TMPDIR", temp)
    cluster = start_patiently()
    try:
        connection = connect(cluster.address, timeout_s=60)
        assert not connection.owned
        cluster.wait_for_nodes(timeout=120)
        head, worker = list_nodes()
        yield TwoNodes(head.id, worker.id)
        connection.close()
    finally:
        cluster.shutdown()
        patch.undo()
        shutil.rmtree(temp, ignore_errors=True)


def start_patiently(tries: int = 4) -> Any:
    """Ray gives a node 30 s to start, which a machine whose cores are all in use may exceed."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    common = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    while True:
        try:
            while len(cluster.list_all_nodes()) < 2:
                cluster.add_node(num_cpus=1 if cluster.list_all_nodes() else 2, **common)
            return cluster
        except Exception:
            tries -= 1
            if not tries:
                cluster.shutdown()
                raise

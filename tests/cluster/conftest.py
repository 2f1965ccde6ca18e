"""One Ray cluster of two raylets for all tests of this folder: a head with 2 CPUs and a worker node with 1."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from gemfleet.cluster.inventory import list_nodes
from gemfleet.cluster.local import connect

OBJECT_STORE_BYTES = 100 << 20


@dataclass(frozen=True)
class TwoNodes:
    """Ids of the two nodes; this process is the driver, on the head."""

    head: str
    worker: str


@pytest.fixture(scope="package")
def two_nodes() -> Iterator[TwoNodes]:
    from ray.cluster_utils import Cluster

    temp = tempfile.mkdtemp(prefix="gf-ray-")  # short: a socket's path may have 107 bytes
    common = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "temp_dir": temp, **common})
    try:
        cluster.add_node(num_cpus=1, temp_dir=temp, **common)
        connection = connect(cluster.address)
        assert not connection.owned
        cluster.wait_for_nodes()
        head, worker = list_nodes()
        yield TwoNodes(head.id, worker.id)
        connection.close()
    finally:
        cluster.shutdown()
        shutil.rmtree(temp, ignore_errors=True)

"""Nodes, interfaces, addresses, and the wait for room."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
from gemfleet.cluster.errors import ClusterError, ResourcesUnavailable
from gemfleet.cluster.inventory import Node, list_nodes, wait_for_resources
from gemfleet.cluster.local import connect, resolve_address
from gemfleet.cluster.network import check_address, interface_for
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


def node(name: str, cpus: float, free_cpus: float, gpus: float = 0.0) -> Node:
    return Node(name, name, name, name == "a", cpus, gpus, free_cpus, gpus, 0, 0)


def test_the_interface_that_carries_an_address() -> None:
    assert interface_for("127.0.0.1") == "lo"
    assert interface_for("203.0.113.9") is None
    assert interface_for("no address") is None


def test_bundles_must_fit_on_nodes_not_only_in_total() -> None:
    nodes = [node("a", 4, 3), node("b", 4, 3)]
    waits: list[str] = []
    wait_for_resources(2, 3, 0, 0, waits.append, lambda: nodes)
    assert waits == []
    with pytest.raises(ResourcesUnavailable) as caught:
        wait_for_resources(3, 2, 0, 0, waits.append, lambda: nodes)
    text = str(caught.value)
    assert "asked for 3 workers with 2 CPUs and 0 GPUs each; 6 CPUs and 0 GPUs are free on 2 nodes, room for 2" in text
    assert "a: 3 of 4 CPUs" in text
    assert "others are using the rest" in text


def test_it_waits_until_there_is_room_and_says_so_once() -> None:
    looks = iter([[node("a", 2, 0)], [node("a", 2, 0)], [node("a", 2, 2)]])
    waits: list[str] = []
    wait_for_resources(1, 2, 0, 30, waits.append, lambda: next(looks))
    assert len(waits) == 1
    assert "room for 0" in waits[0]


def test_it_stops_waiting_after_the_set_time() -> None:
    with pytest.raises(ResourcesUnavailable, match=r"1 GPU each.*waited 0\.2 s. Lower cluster.workers"):
        wait_for_resources(1, 1, 1, 0.2, lambda _: None, lambda: [node("a", 2, 2)])


@pytest.mark.parametrize("form", ["{}", "ray://{}", "http://{}"])
def test_an_address_that_somebody_answers(form: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = form.format(f"127.0.0.1:{server.getsockname()[1]}")
        check_address(address)
    with pytest.raises(ClusterError, match="nobody answers at the Ray address"):
        check_address(address, timeout_s=2)
    with pytest.raises(ClusterError, match="nobody answers"):
        connect(address)


@pytest.mark.parametrize("address", ["", "host", "host:port", "host:99999999", "ray://:1"])
def test_a_malformed_address(address: str) -> None:
    with pytest.raises(ClusterError, match="not of the form host:port"):
        check_address(address)


def test_an_explicit_address_wins_over_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_address(None) is None
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert resolve_address(None) == "head:6379"
    assert resolve_address("other:6379") == "other:6379"
    assert resolve_address("local") is None


@pytest.mark.slow
def test_a_local_cluster_has_room_for_the_workers_and_ends_with_its_owner() -> None:
    script = (
        "import tempfile, ray; from gemfleet.cluster.local import connect\n"
        "with tempfile.TemporaryDirectory(prefix='gf-ray-', ignore_cleanup_errors=True) as temp:\n"
        "    connection = connect('local', workers=5, temp_dir=temp, object_store_bytes=100 << 20)\n"
        "    cpus = ray.cluster_resources()['CPU']\n"
        "    connection.close()\n"
        "    print(connection.owned, cpus >= 5, ray.is_initialized())\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    assert done.stdout.split()[-3:] == ["True", "True", "False"]


@pytest.mark.slow
def test_nodes_of_a_cluster(two_nodes: Any) -> None:
    head, worker = list_nodes()
    assert (head.id, worker.id) == (two_nodes.head, two_nodes.worker)
    assert (head.is_head, worker.is_head) == (True, False)
    assert (head.cpus, worker.cpus) == (2, 1)
    wait_for_resources(3, 1, 0, 60, lambda _: None)
    with pytest.raises(ResourcesUnavailable, match=r"3 CPUs and 0 GPUs are free on 2 nodes, room for 0 \("):
        wait_for_resources(1, 3, 0, 0, lambda _: None)


@pytest.mark.slow
def test_a_worker_talks_over_the_interface_of_its_ray_address(two_nodes: Any) -> None:
    def pinned(variables: dict[str, str]) -> tuple[str | None, dict[str, str]]:
        from gemfleet.cluster.network import INTERFACE_VARIABLES, pin_network_interface

        os.environ.update(variables)
        interface = pin_network_interface()
        return interface, {name: os.environ[name] for name in INTERFACE_VARIABLES}

    where = NodeAffinitySchedulingStrategy(two_nodes.worker, soft=False)
    task = ray.remote(num_cpus=0, scheduling_strategy=where, max_calls=1)(pinned)
    interface, variables = ray.get(task.remote({"NCCL_SOCKET_IFNAME": "chosen0"}))
    assert interface in {path.name for path in Path("/sys/class/net").iterdir()}
    assert variables == {
        "GLOO_SOCKET_IFNAME": interface,
        "NCCL_SOCKET_IFNAME": "chosen0",
        "TP_SOCKET_IFNAME": interface,
    }

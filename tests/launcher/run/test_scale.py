"""64 nodes of 8 GPUs, as Ray's own node table would have them: inventory, plan, placement, doctor and GET /cluster."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray
import ray._private.state
from fastapi.testclient import TestClient
from gemfleet.cluster.doctor.check_facts import check_facts
from gemfleet.cluster.doctor.check_measured import check_loss, check_ports
from gemfleet.cluster.doctor.report import failures
from gemfleet.cluster.inventory import Node, list_nodes, wait_for_resources
from gemfleet.launcher.api.app import create_app
from gemfleet.launcher.api.settings import ApiSettings
from gemfleet.launcher.config.cluster import ClusterConfig
from gemfleet.launcher.placement import place
from gemfleet.launcher.plan.fleet import size_up
from gemfleet.launcher.plan.fleet_question import find_device, find_shape
from gemfleet.train.planning import Fleet, Workload
from support.doctor_facts import NODE, link

NODES, GPUS = 64, 8
SECONDS, MIB = 5.0, 64


@contextmanager
def within(what: str) -> Iterator[None]:
    """Under `SECONDS` and `MIB`, and says how much it was."""
    tracemalloc.start()
    started = time.monotonic()
    yield
    took, peak = time.monotonic() - started, tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    print(f"{what}: {took:.3f} s, {peak:.1f} MiB")
    assert took < SECONDS
    assert peak < MIB


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[Node]:
    """A head without GPUs and 64 workers, through the parser of Ray's table (its entries as Ray 2.60 gives them)."""
    table = [entry(0, 0, head=True), *(entry(n, GPUS) for n in range(1, NODES + 1))]
    free = {row["NodeID"]: {k: v for k, v in row["Resources"].items() if k in ("CPU", "GPU")} for row in table}
    monkeypatch.setattr(ray, "nodes", lambda: table)
    monkeypatch.setattr(ray._private.state, "available_resources_per_node", lambda: free)
    monkeypatch.setattr(ray._private.state.state, "get_draining_nodes", dict)
    with within("inventory"):
        found = list_nodes()
    assert (len(found), sum(node.gpus for node in found), found[0].is_head) == (NODES + 1, NODES * GPUS, True)
    return found


def entry(number: int, gpus: int, head: bool = False) -> dict[str, Any]:
    address = f"10.0.{number // 250}.{number % 250 + 1}"
    resources = {"CPU": 96.0, "memory": 1e12, "object_store_memory": 2e11, f"node:{address}": 1.0}
    if gpus:
        resources |= {"GPU": float(gpus), "accelerator_type:H100": 1.0}
    if head:
        resources |= {"node:__internal_head__": 1.0}
    return {
        "NodeID": f"{number:056x}",
        "Alive": True,
        "NodeManagerAddress": address,
        "NodeManagerHostname": f"gpu-{number}",
        "NodeManagerPort": 6380,
        "ObjectManagerPort": 6381,
        "Resources": resources,
        "Labels": {},
    }


def test_ranks_find_their_places(nodes: list[Node]) -> None:
    with within("placement"):
        placement = place(ClusterConfig(), nodes)
        wait_for_resources(placement.ranks, 1.0, 1.0, 0.0, lambda text: None, lambda: nodes)
    assert (placement.ranks, placement.gpus_per_rank) == (NODES * GPUS, 1)


def test_a_plan_for_all_of_them() -> None:
    fleet = Fleet(NODES * GPUS, GPUS, 400.0)
    with within("plan"):
        report = size_up(find_shape("27b"), Workload(global_batch=4096), find_device("h100"), fleet, None)
    assert report.choice.fits


def test_the_api_lists_them(nodes: list[Node], tmp_path: Path) -> None:
    class View:
        def nodes(self) -> list[Node] | None:
            return nodes

    with TestClient(create_app(ApiSettings(home=tmp_path), View()), base_url="http://localhost") as client:
        client.get("/api/v1/cluster")
        with within("GET /cluster"):
            answer = client.get("/api/v1/cluster")
    assert answer.status_code == 200
    assert len(answer.json()["nodes"]) == NODES + 1
    assert answer.json()["gpus"] == NODES * GPUS


def test_the_doctor_concludes(nodes: list[Node]) -> None:
    """From facts of all nodes and the ways between neighbours; one node has an old package."""
    facts = [{**NODE, "address": node.address, "gpus": {**NODE["gpus"], "count": int(node.gpus)}} for node in nodes]
    facts[7] = {**facts[7], "versions": {**NODE["versions"], "torch": "2.12.0"}}
    addresses = [node.address for node in nodes]
    links = {
        a: {addresses[(i + step) % len(addresses)]: link() for step in range(1, 9)} for i, a in enumerate(addresses)
    }
    with within("doctor's conclusions"):
        findings = check_facts(facts, {node.address: node.gpus for node in nodes}, {})
        findings += [*check_ports(links), *check_loss(links)]
    assert [(finding.check, finding.where) for finding in failures(findings)] == [("versions", addresses[7])]

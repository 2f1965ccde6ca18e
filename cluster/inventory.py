"""The nodes of a cluster: what each has, what is free on it, and how to wait for room."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from .errors import ResourcesUnavailable
from .network import why_unreachable

HEAD_RESOURCE = "node:__internal_head__"
KIND_RESOURCE = "accelerator_type:"
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Node:
    """One living node. Memory in bytes; `free_*` is what no task or actor has reserved.

    port:     of its raylet
    draining: Ray starts nothing on it any more, because it is about to go
    kind:     Ray's name of its accelerators, for example `H100`; empty where Ray knows none
    """

    id: str
    address: str
    hostname: str
    is_head: bool
    cpus: float
    gpus: float
    free_cpus: float
    free_gpus: float
    memory_bytes: int
    object_store_bytes: int
    port: int = 0
    draining: bool = False
    kind: str = ""

    def bundles(self, cpus_per_worker: float, gpus_per_worker: float, free: bool = True) -> int:
        """How many workers of that size fit on this node. `free`: on what is free; otherwise on all that it has."""
        if self.draining:
            return 0
        have = (self.free_cpus, self.free_gpus) if free else (self.cpus, self.gpus)
        asked = [(h, a) for h, a in zip(have, (cpus_per_worker, gpus_per_worker), strict=True) if a > 0]
        return min((int(h / a + 1e-9) for h, a in asked), default=1_000_000)


def list_nodes() -> list[Node]:
    """The living nodes, the head first, then by address. Ray must be initialised."""
    import ray
    import ray._private.state

    free: Mapping[str, Mapping[str, float]] = ray._private.state.available_resources_per_node()
    draining = ray._private.state.state.get_draining_nodes()
    nodes = [
        _node(entry, free.get(entry["NodeID"], {}), entry["NodeID"] in draining)
        for entry in ray.nodes()
        if entry["Alive"]
    ]
    return sorted(nodes, key=lambda node: (not node.is_head, node.address, node.id))


def answering_nodes(timeout_s: float = 2.0) -> list[Node]:
    """The living nodes whose raylet takes a connection now. Ray itself calls a lost node alive for some 15 s more."""
    nodes = list_nodes()
    with ThreadPoolExecutor(min(32, max(1, len(nodes)))) as pool:
        reasons = pool.map(lambda node: why_unreachable(node.address, node.port, timeout_s), nodes)
        return [node for node, reason in zip(nodes, reasons, strict=True) if reason is None]


def of_kind(nodes: Sequence[Node], kind: str) -> list[Node]:
    """The nodes with accelerators of this kind; all nodes when it is empty."""
    return [node for node in nodes if not kind or node.kind == kind]


def only_on(node_id: str) -> dict[str, Any]:
    """Options for a task or actor that may run on this node alone."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False)}


def wait_for_resources(
    workers: int,
    cpus_per_worker: float,
    gpus_per_worker: float,
    timeout_s: float,
    on_wait: Callable[[str], None],
    nodes: Callable[[], Sequence[Node]] = list_nodes,
    on_look: Callable[[], None] = lambda: None,
) -> None:
    """Returns once `workers` such workers fit on what is free, each whole on one node.

    `on_wait` gets one sentence whenever what is missing changes. `on_look` is called about once a second; an error that
    it raises ends the waiting. ResourcesUnavailable after `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s
    told = ""
    while True:
        on_look()
        now = nodes()
        if sum(node.bundles(cpus_per_worker, gpus_per_worker) for node in now) >= workers:
            return
        lacks = missing(workers, cpus_per_worker, gpus_per_worker, now)
        if time.monotonic() >= deadline:
            raise ResourcesUnavailable(
                f"{lacks}; waited {timeout_s:g} s. Lower cluster.workers or cluster.cpus_per_worker, or add nodes"
            )
        if lacks != told:
            on_wait(lacks)
            told = lacks
        time.sleep(max(0.0, min(POLL_SECONDS, deadline - time.monotonic())))


def missing(workers: int, cpus: float, gpus: float, nodes: Sequence[Node]) -> str:
    """A sentence: what was asked for, what is free in all, and what is free on each node."""
    fitting = sum(node.bundles(cpus, gpus) for node in nodes)
    ever = sum(node.bundles(cpus, gpus, free=False) for node in nodes)
    has = f"{_amount(sum(n.free_cpus for n in nodes), 'CPU')} and {_amount(sum(n.free_gpus for n in nodes), 'GPU')}"
    per_node = "; ".join(
        f"{n.address}: {n.free_cpus:g} of {_amount(n.cpus, 'CPU')}, {n.free_gpus:g} of {_amount(n.gpus, 'GPU')} free"
        for n in nodes
    )
    others = "" if ever < workers else ", others are using the rest"
    return (
        f"asked for {_amount(workers, 'worker')} with {_amount(cpus, 'CPU')} and {_amount(gpus, 'GPU')} each; "
        f"{has} are free on {_amount(len(nodes), 'node')}, room for {fitting}{others} ({per_node})"
    )


def _node(entry: Mapping[str, Any], free: Mapping[str, float], draining: bool) -> Node:
    total = entry["Resources"]
    return Node(
        id=entry["NodeID"],
        address=entry["NodeManagerAddress"],
        hostname=entry["NodeManagerHostname"],
        is_head=HEAD_RESOURCE in total,
        cpus=total.get("CPU", 0.0),
        gpus=total.get("GPU", 0.0),
        free_cpus=free.get("CPU", 0.0),
        free_gpus=free.get("GPU", 0.0),
        memory_bytes=int(total.get("memory", 0)),
        object_store_bytes=int(total.get("object_store_memory", 0)),
        port=int(entry["NodeManagerPort"]),
        draining=draining,
        kind=_kind(total),
    )


def _kind(resources: Mapping[str, Any]) -> str:
    """The longest name: for the same accelerators Ray may say `A100-80G` besides `A100`."""
    kinds = [name.removeprefix(KIND_RESOURCE) for name in resources if name.startswith(KIND_RESOURCE)]
    return max(kinds, key=len, default="")


def _amount(number: float, noun: str) -> str:
    return f"{number:g} {noun}" + ("" if number == 1 else "s")

"""What the cluster consists of: its nodes, what is free on them, and the interface of a node's Ray address."""

from __future__ import annotations

import ipaddress
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from .errors import ClusterError, ResourcesUnavailable

HEAD_RESOURCE = "node:__internal_head__"
KIND_RESOURCE = "accelerator_type:"
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME")
LOCAL_ADDRESSES = ("auto", "local")
DEFAULT_PORTS = {"ray": 10001, "http": 8265, "https": 443}
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Node:
    """One living node of the cluster. Memory in bytes; `free_*` is what no task or actor has reserved.

    port: of its raylet; draining: Ray starts nothing on it any more, because it is about to go
    kind: what Ray calls its accelerators, for example `H100`; empty where it has none or does not know them
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
        """How many workers of that size fit on this node, each whole: on what is free, or on all the node has."""
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
    """The longest name: besides `A100` Ray may say `A100-80G` of the same accelerators."""
    kinds = [name.removeprefix(KIND_RESOURCE) for name in resources if name.startswith(KIND_RESOURCE)]
    return max(kinds, key=len, default="")


def of_kind(nodes: Sequence[Node], kind: str) -> list[Node]:
    """The nodes with accelerators of this kind; all of them where it is empty."""
    return [node for node in nodes if not kind or node.kind == kind]


def answering_nodes(timeout_s: float = 2.0) -> list[Node]:
    """The living nodes whose raylet takes a connection now: Ray itself calls a lost node alive for some 15 s more."""
    nodes = list_nodes()

    def answers(node: Node) -> bool:
        try:
            socket.create_connection((node.address, node.port), timeout=timeout_s).close()
        except OSError:
            return False
        return True

    with ThreadPoolExecutor(min(32, max(1, len(nodes)))) as pool:
        return [node for node, good in zip(nodes, pool.map(answers, nodes), strict=True) if good]


def interface_for(address: str) -> str | None:
    """The network interface of this machine that carries the IPv4 or IPv6 `address`; None when none does."""
    import psutil

    try:
        wanted = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    for name, entries in psutil.net_if_addrs().items():
        for entry in entries:
            if entry.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            if ipaddress.ip_address(entry.address.partition("%")[0]) == wanted:
                return str(name)
    return None


def pin_network_interface() -> str | None:
    """Make gloo and NCCL of this process talk over the interface of the node's Ray address; returns that interface.

    Without it they bind to whatever the host name resolves to, often 127.0.0.1, and ranks of other hosts never connect.
    Run it in a worker before its process group exists. Variables that the user has set are left as they are.
    """
    import ray.util

    interface = interface_for(ray.util.get_node_ip_address())
    if interface is not None:
        for variable in INTERFACE_VARIABLES:
            os.environ.setdefault(variable, interface)
    return interface


def wait_for_resources(
    workers: int,
    cpus_per_worker: float,
    gpus_per_worker: float,
    timeout_s: float,
    on_wait: Callable[[str], None],
    nodes: Callable[[], Sequence[Node]] = list_nodes,
    on_look: Callable[[], None] = lambda: None,
) -> None:
    """Return once `workers` such workers fit on what is free, each whole on one node.

    `on_wait` gets one sentence whenever what is missing changes. ResourcesUnavailable after `timeout_s`. `on_look` is
    called about once a second meanwhile; what it raises ends the waiting.
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
    """What was asked, what there is, and node by node when it is the division among nodes that matters."""
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


def _amount(number: float, noun: str) -> str:
    return f"{number:g} {noun}" + ("" if number == 1 else "s")


def check_address(address: str, timeout_s: float = 5.0) -> None:
    """Return if something listens at a Ray address: `host:port`, `ray://host:port` or `http://host:port`.

    ClusterError when the address is malformed or nobody answers. `auto` and `local` name no host and always pass.
    """
    if address in LOCAL_ADDRESSES:
        return
    host, port = _host_and_port(address)
    try:
        socket.create_connection((host, port), timeout=timeout_s).close()
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise ClusterError(
            f"nobody answers at the Ray address {address!r} ({reason}); start the head node, or correct the address"
        ) from error


def _host_and_port(address: str) -> tuple[str, int]:
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port or DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise ClusterError(
            f"the Ray address {address!r} is not of the form host:port, ray://host:port or http://host:port; correct it"
        )
    return host, port

"""The network of a node: whether an address answers, and which interface carries the node's own address."""

from __future__ import annotations

import ipaddress
import os
import socket
from urllib.parse import urlsplit

from .errors import ClusterError

INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "TP_SOCKET_IFNAME")
LOCAL_ADDRESSES = ("auto", "local")
DEFAULT_PORTS = {"ray": 10001, "http": 8265, "https": 443}


def why_unreachable(host: str, port: int, timeout_s: float) -> str | None:
    """Why no TCP connection to `host` can be made within `timeout_s` seconds. None when one can."""
    try:
        socket.create_connection((host, port), timeout=timeout_s).close()
    except OSError as error:
        return error.strerror or str(error) or type(error).__name__
    return None


def check_address(address: str, timeout_s: float = 5.0) -> None:
    """Returns if something listens at a Ray address: `host:port`, `ray://host:port` or `http://host:port`.

    ClusterError when the address is malformed or nobody answers. `auto` and `local` name no host and always pass.
    """
    if address in LOCAL_ADDRESSES:
        return
    reason = why_unreachable(*_host_and_port(address), timeout_s)
    if reason is not None:
        raise ClusterError(
            f"nobody answers at the Ray address {address!r} ({reason}); start the head node, or correct the address"
        )


def family_of(address: str) -> socket.AddressFamily:
    """The address family of an IPv4 or IPv6 address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def free_port(address: str) -> int:
    """A port of this machine's `address` that nobody listens at now."""
    with socket.socket(family_of(address)) as free:
        free.bind((address, 0))
        return int(free.getsockname()[1])


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
    """Makes gloo and NCCL of this process talk over the interface of the node's Ray address. Returns that interface.

    Without it they bind to whatever the host name resolves to, often 127.0.0.1, and ranks of other hosts never connect.
    Call it in a worker before its process group exists. Variables that the user has set stay as they are.
    """
    import ray.util

    interface = interface_for(ray.util.get_node_ip_address())
    if interface is not None:
        for variable in INTERFACE_VARIABLES:
            os.environ.setdefault(variable, interface)
    return interface


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

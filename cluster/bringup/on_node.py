"""The part of `gemfleet cluster` that runs on a node over ssh: looks, stops, and asks the cluster. Prints JSON.

It imports only psutil and the standard library before it needs more, so that a look takes a fraction of a second.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

MARKER = "GEMFLEET_CLUSTER"  # the variable that names the cluster in the environment of its processes
# Names or arguments of Ray's processes. Python workers overwrite their command line with `ray::`.
RAY_NAMES = ("raylet", "gcs_server", "ray::", "ray-dashboard", "ray/dashboard/", "ray/autoscaler/_private/monitor.py")
END_SECONDS = 10.0


def facts(name: str) -> dict[str, Any]:
    """Versions, and the Ray processes here: those of the cluster `name`, and others."""
    ours, others = ray_processes(name)
    return {
        "python": platform.python_version(),
        "ray": _version("ray"),
        "gemfleet": _version("gemfleet"),
        "torch": _version("torch"),
        "ours": [_shown(process) for process in ours],
        "others": [_shown(process) for process in others],
    }


def ray_processes(name: str) -> tuple[list[psutil.Process], list[psutil.Process]]:
    """Processes of the cluster `name`, which have its marker or a parent with it; and Ray's other processes."""
    processes = [process for process in psutil.process_iter() if process.pid != os.getpid()]
    marked = {process.pid for process in processes if _marker(process) == name}
    ancestors = _own_ancestors()
    ours, others = [], []
    for process in processes:
        if process.pid in ancestors:
            continue
        if process.pid in marked or _parents(process) & marked:
            ours.append(process)
        elif _is_ray(process):
            others.append(process)
    return ours, others


def stop(name: str, seconds: float) -> list[str]:
    """Ends the cluster's processes on this node, by `ray stop`, then by signals. Returns what is left, as text."""
    before, others = ray_processes(name)
    if before and not others:  # `ray stop` ends every Ray process of the machine
        command = ["ray", "stop", "--grace-period", str(int(seconds))]
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=seconds + 60, check=False)
    left = {*before, *ray_processes(name)[0]}
    for end in (psutil.Process.terminate, psutil.Process.kill):
        _signal(left, end)
        left = set(psutil.wait_procs(left, timeout=END_SECONDS)[1]) | set(ray_processes(name)[0])
    return [_shown(process) for process in left]


def nodes(address: str) -> list[dict[str, Any]]:
    """The living nodes of the cluster at `address`: id, address, hostname, cpus and gpus of each."""
    found = []
    for node_id, info in _gcs(address).get_all_node_info(timeout=30).items():
        if info.state == 0:  # GcsNodeInfo.ALIVE
            totals = dict(info.resources_total)
            found.append(
                {
                    "id": node_id.hex(),
                    "address": info.node_manager_address,
                    "hostname": info.node_manager_hostname,
                    "cpus": totals.get("CPU", 0.0),
                    "gpus": totals.get("GPU", 0.0),
                }
            )
    return found


def drain(address: str, node_address: str, seconds: int) -> dict[str, Any]:
    """Asks Ray to drain the node at `node_address` within `seconds`. Returns whether it accepted, and its message."""
    from ray.core.generated import autoscaler_pb2

    found = [node["id"] for node in nodes(address) if node["address"] == node_address]
    if not found:
        return {"accepted": True, "message": "is not in the cluster"}
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline = int((time.time() + seconds) * 1000)
    accepted, message = _gcs(address).drain_node(found[0], reason, "gemfleet cluster remove", deadline)
    return {"accepted": accepted, "message": message}


def wait(address: str, count: int, seconds: float) -> int:
    """Waits until the cluster at `address` has `count` living nodes. SystemExit with a sentence after `seconds`."""
    end = time.monotonic() + seconds
    found, problem = 0, ""
    while time.monotonic() < end:
        try:
            found = len(nodes(address))
        except Exception as error:  # the head is not there yet
            problem = f" ({error})"
        if found >= count:
            return found
        time.sleep(1)
    raise SystemExit(
        f"{found} of {count} nodes joined the Ray cluster at {address} within {seconds:g} s{problem}; see what their "
        "`ray start` printed above"
    )


def own_address(peer: str | None) -> str:
    """This node's address on the way to `peer`, a name or an address. Without one: any that is not loopback.

    The node's own name often means 127.0.1.1, at which no other node finds it.
    """
    if peer is not None:
        family, _, _, _, where = socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as way:
            way.connect(where)  # sends nothing
            return str(way.getsockname()[0])
    entries = [entry for found in psutil.net_if_addrs().values() for entry in found]
    own = [entry.address for entry in entries if entry.family == socket.AF_INET]
    return next((address for address in own if not address.startswith("127.")), "127.0.0.1")


def _gcs(address: str) -> Any:
    import ray._raylet

    return ray._raylet.GcsClient(address=address)


def _signal(processes: Iterable[psutil.Process], end: Any) -> None:
    for process in processes:
        try:
            end(process)
        except psutil.Error:
            continue


def _marker(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARKER)
    except (psutil.Error, OSError):
        return None


def _parents(process: psutil.Process) -> set[int]:
    try:
        return {parent.pid for parent in process.parents()}
    except psutil.Error:
        return set()


def _own_ancestors() -> set[int]:
    """This process and those above it, such as the shell of ssh: they belong to no cluster."""
    return {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}


def _is_ray(process: psutil.Process) -> bool:
    try:
        words = " ".join([process.name(), *process.cmdline()[:4]])
    except psutil.Error:
        return False
    return any(name in words for name in RAY_NAMES)


def _shown(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {' '.join(process.cmdline())[:100] or process.name()}"
    except psutil.Error:
        return f"{process.pid}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main(arguments: list[str]) -> Any:
    """`facts NAME`, `stop NAME SECONDS`, `address [PEER]`, `nodes GCS_ADDRESS`, `wait GCS_ADDRESS NODES SECONDS` or
    `drain GCS_ADDRESS ADDRESS SECONDS`.
    """
    match arguments:
        case ["facts", name]:
            return facts(name)
        case ["stop", name, seconds]:
            return stop(name, float(seconds))
        case ["address", *peers] if len(peers) < 2:
            return own_address(peers[0] if peers else None)
        case ["wait", address, count, seconds]:
            return wait(address, int(count), float(seconds))
        case ["nodes", address]:
            return nodes(address)
        case ["drain", address, node_address, seconds]:
            return drain(address, node_address, int(seconds))
    raise SystemExit(f"usage: {main.__doc__}")


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))

"""Judges the facts of all nodes, for the doctor and for every run's preflight. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .report import Finding, Level, ranked

Facts = Mapping[str, Any]
GIB = 2**30
MUST_MATCH = ("python", "cuda", "gemfleet", "ray", "torch", "transformers", "peft", "deepspeed")
LEAST_FREE_GIB = {"home": (5, 1), "temporary": (5, 0.5), "shared memory": (1, 0.125)}  # warns below, fails below
SPACE_REMEDY = {
    "home": "free some (`gemfleet prune`), or set GEMFLEET_HOME to a larger disk",
    "temporary": "free some, or start Ray with a --temp-dir on a larger disk: it spills objects and writes logs there",
    "shared memory": "give /dev/shm more (in a container: --shm-size), or lower the object store",
}
LEAST_OPEN_FILES, LEAST_PROCESSES = 65_536, 4_096


def check_facts(facts: Sequence[Facts], ray_gpus: Mapping[str, float], busy_gpus: Mapping[str, float]) -> list[Finding]:
    """All checks. facts: see `node_facts`; ray_gpus, busy_gpus: that Ray offers and has given out, by address."""
    findings = check_versions(facts)
    for node in facts:
        address = node["address"]
        findings += check_gpus(node, ray_gpus.get(address, 0), busy_gpus.get(address, 0))
        findings += check_space(node)
        findings += check_limits(node)
        findings += check_interface(node)
    return findings


def check_versions(facts: Sequence[Facts]) -> list[Finding]:
    """One finding for each package and node that differs, else one in all. The majority's version counts as right."""
    findings = []
    for package in sorted({name for node in facts for name in node["versions"]}):
        by_version: dict[str, list[str]] = {}
        for node in facts:
            by_version.setdefault(node["versions"].get(package, ""), []).append(node["address"])
        if len(by_version) == 1:
            continue
        right = max(by_version, key=lambda found: (bool(found), len(by_version[found])))
        level = Level.FAIL if package in MUST_MATCH else Level.WARN
        for found, addresses in by_version.items():
            if found != right:
                figure = f"{package} is {found or 'missing'}, elsewhere {right}"
                remedy = f"install {package} {right} there (`pip install -c constraints.txt`) and restart Ray on it"
                findings += [Finding("versions", address, level, figure, remedy) for address in addresses]
    if findings or not facts:
        return findings
    shown = ", ".join(f"{name} {facts[0]['versions'][name]}" for name in ("gemfleet", "ray", "torch", "python", "cuda"))
    return [Finding("versions", "cluster", Level.PASS, f"equal on {len(facts)} nodes: {shown}")]


def check_gpus(node: Facts, offered: float, busy: float) -> list[Finding]:
    """Whether Ray offers as many GPUs as the driver shows, and whether each GPU is healthy, cool and free."""
    where, gpus = node["address"], node["gpus"]
    count, devices = gpus["count"], gpus["devices"]
    if not count and not offered:
        return [Finding("gpus", where, Level.PASS, "none")]
    if int(offered) != count:
        figure = f"Ray offers {offered:g} GPUs, the driver shows {count}"
        # Fewer may be intended: a person may keep GPUs for something else.
        level = Level.FAIL if offered > count else Level.WARN
        return [Finding("gpus", where, level, figure, "start Ray there without --num-gpus, or repair the driver")]
    if problem := gpus.get("torch_problem"):  # an older gemfleet does not tell
        remedy = (
            "update the driver there, or install a torch built for its CUDA and GPUs; to train on CPUs set "
            "cluster.gpus_per_worker: 0"
        )
        return [Finding("gpus", where, Level.FAIL, f"the driver shows {count}, but {problem}", remedy)]
    if not devices:
        remedy = "`pip install nvidia-ml-py` there, or repair the driver"
        return [Finding("gpus", where, Level.WARN, f"{count}, of which nothing is known ({gpus['problem']})", remedy)]
    kinds = ", ".join(sorted({device["name"] for device in devices}))
    findings = [Finding("gpus", where, Level.PASS, f"{len(devices)} x {kinds}, driver {gpus['driver']}")]
    for index, device in enumerate(devices):
        findings += _check_device(f"{where} GPU {index}", device, idle=not busy)
    return findings


def _check_device(where: str, device: Facts, idle: bool) -> list[Finding]:
    used = 1 - device["free"] / max(1, device["total"])
    processes, ecc = device["processes"], device["ecc_errors"]
    slow = ", ".join(device["throttled"])
    return [
        ranked(
            *("gpu memory", where, f"{device['free'] / GIB:.1f} of {device['total'] / GIB:.1f} GiB free"),
            [
                (
                    idle and used > 0.1,
                    Level.WARN,
                    f"end what holds it (processes {', '.join(map(str, processes)) or 'of other containers'})",
                )
            ],
        ),
        ranked(
            *("gpu health", where, f"{ecc if ecc is not None else 'no'} uncorrected memory errors"),
            [(bool(ecc), Level.FAIL, "drain the node and reset the GPU; replace it if they come back")],
        ),
        ranked(
            *("gpu clocks", where, f"slowed by {slow}" if slow else f"full, {device['celsius']} °C"),
            [(bool(slow), Level.WARN, "look at cooling and power of the node: all ranks wait for the slowest")],
        ),
    ]


def check_space(node: Facts) -> list[Finding]:
    """Whether the disks and shared memory have room."""
    findings = []
    for name, disk in node["disks"].items():
        warn, fail = LEAST_FREE_GIB[name]
        free = disk["free"] / GIB
        findings.append(
            ranked(
                *("space", node["address"], f"{name}: {free:.1f} of {disk['total'] / GIB:.1f} GiB free"),
                [(free < fail, Level.FAIL, SPACE_REMEDY[name]), (free < warn, Level.WARN, SPACE_REMEDY[name])],
            )
        )
    return findings


def check_limits(node: Facts) -> list[Finding]:
    """Whether Ray's processes may open enough files, start enough processes and lock enough memory."""
    limits = {name: value if value >= 0 else 2**62 for name, value in node["limits"].items()}
    files, processes, locked = limits["open files"], limits["processes"], limits["locked memory"]
    infiniband = node["interface"]["infiniband_gbits"] > 0
    figure = f"open files {_count(files)}, processes {_count(processes)}, locked memory {_count(locked)}"
    remedy = "raise it in /etc/security/limits.conf, or in the service that starts Ray, and restart Ray there"
    return [
        ranked(
            *("limits", node["address"], figure),
            [
                (files < 4_096, Level.FAIL, f"open files: {remedy}"),
                (files < LEAST_OPEN_FILES, Level.WARN, f"open files, {LEAST_OPEN_FILES} or more: {remedy}"),
                (processes < LEAST_PROCESSES, Level.WARN, f"processes, {LEAST_PROCESSES} or more: {remedy}"),
                (infiniband and locked < 2**40, Level.WARN, f"locked memory, unlimited for InfiniBand: {remedy}"),
            ],
        )
    ]


def check_interface(node: Facts) -> list[Finding]:
    """Whether there is an interface that carries the ranks."""
    interface = node["interface"]
    name = interface["name"]
    speed = f", {interface['mbits'] / 1000:g} Gbit/s" if interface["mbits"] else ""
    fabric = f", InfiniBand {interface['infiniband_gbits']:g} Gbit/s" if interface["infiniband_gbits"] else ""
    figure = f"{name or 'none'} carries the ranks{speed}{fabric}, MTU {interface['mtu']}"
    return [
        ranked(
            *("interface", node["address"], figure),
            [
                (not name, Level.FAIL, "no interface has the node's Ray address: start Ray with --node-ip-address"),
                (
                    not interface["exists"],
                    Level.FAIL,
                    "none has that name: correct NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME (`interface` in the file)",
                ),
            ],
        )
    ]


def _count(value: int) -> str:
    return "unlimited" if value >= 2**62 else f"{value}"

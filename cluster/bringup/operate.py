"""Brings a cluster up and down over ssh: up, add, remove, down, status. Each method reads as the list of its steps.

It does not use Ray's own launcher (`ray up`, provider `local`). In Ray 2.60, `ray down` never connects to a worker, and
`ray up` returns before any worker is there and retries a failing worker without a word. That launcher checks no host
keys, takes no ssh port, and copies the operator's private key to the head. It gives all nodes the same commands, so
their GPUs, interfaces and addresses cannot differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ClusterError
from . import scripts
from .description import ClusterDescription, NodeSection
from .ssh import Answer, Ssh, address_of

Tell = Callable[[str], None]
LOOK_SECONDS, START_SECONDS, SETUP_SECONDS = 120.0, 600.0, 3600.0
JOIN_SECONDS, POLL_SECONDS = 300.0, 2.0
STOP_SECONDS = 30
COMPARED = ("gemfleet", "ray", "python", "torch")


@dataclass(frozen=True)
class NodeStatus:
    """One machine of the file.

    facts:      see `on_node.facts`; None when ssh did not reach it
    alive:      Ray calls the node alive
    cpus, gpus: what Ray offers there
    problem:    why ssh did not reach it; None when it did
    """

    node: NodeSection
    address: str
    facts: dict[str, Any] | None
    alive: bool
    cpus: float
    gpus: float
    problem: str | None


class Operator:
    """Operates one described cluster. `tell` gets a few words before each step. Methods raise ClusterError."""

    def __init__(self, description: ClusterDescription, tell: Tell) -> None:
        if description.head is None:
            raise ClusterError("the description has no `head`; give the host that keeps runs and checkpoints")
        self.description, self.head, self.tell = description, description.head, tell
        self.ssh = Ssh(description.ssh)
        self.addresses = {node.host: address_of(node) for node in description.nodes()}

    def up(self, token: str) -> None:
        """Starts Ray on every machine of the file that is not in the cluster yet, and waits until all have joined."""
        nodes = self.description.nodes()
        self.tell(f"looking at {len(nodes)} nodes")
        facts = self.look(nodes)
        check_versions(facts)
        idle = [node for node in nodes if not facts[node.host]["ours"]]
        if self.head in idle:
            busy = [node.host for node in nodes if node not in idle]
            if busy:
                raise ClusterError(f"the head is down and {', '.join(busy)} are not; run `gemfleet cluster down` first")
        self._start(idle, token)
        self._wait_until_joined(nodes)

    def add(self, hosts: Sequence[str], token: str) -> None:
        """Lets workers of the file join the running cluster."""
        chosen = [self.worker(host) for host in hosts]
        facts = self.look([self.head, *chosen])
        check_versions(facts)
        if not facts[self.head.host]["ours"]:
            raise ClusterError("the cluster is not up; run `gemfleet cluster up`")
        self._start([node for node in chosen if not facts[node.host]["ours"]], token)
        self._wait_until_joined(chosen)

    def remove(self, hosts: Sequence[str], seconds: int) -> None:
        """Drains workers for at most `seconds`, then stops them."""
        chosen = [self.worker(host) for host in hosts]
        for node in chosen:
            self.tell(f"draining {node.host} for {seconds} s at most")
            self._drain(node, seconds)
        deadline = time.monotonic() + seconds
        gone = {self.addresses[node.host] for node in chosen}
        while gone & {entry["address"] for entry in self.alive()} and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        self._stop(chosen)

    def down(self) -> None:
        """Stops the workers, then the head. ClusterError names what did not stop, once all others are down."""
        workers = self.description.workers
        problems = self._stop_all(workers)
        problems += self._stop_all([self.head])
        if problems:
            raise ClusterError("not everything is down:\n  " + "\n  ".join(problems))

    def status(self) -> list[NodeStatus]:
        """The status of every machine of the file, also of those that ssh does not reach."""
        nodes = self.description.nodes()
        answers = self.ssh.try_all(nodes, lambda _: scripts.look(self.description), LOOK_SECONDS)
        head = answers[self.head.host]
        running = head.code == 0 and bool(head.content()["ours"])
        alive = {entry["address"]: entry for entry in (self.alive() if running else [])}
        return [self._status(answers[node.host], alive) for node in nodes]

    def worker(self, host: str) -> NodeSection:
        """The worker of the file with this host name or address."""
        for node in self.description.workers:
            if host in (node.host, node.address):
                return node
        known = ", ".join(node.host for node in self.description.workers) or "none"
        raise ClusterError(f"{host!r} is no worker of the file (there: {known}); write it into `workers` first")

    def look(self, nodes: Sequence[NodeSection]) -> dict[str, dict[str, Any]]:
        """Facts by host. ClusterError when gemfleet is missing on one, or processes of another Ray run there."""
        answers = self.ssh.run_all(
            nodes, lambda _: scripts.look(self.description), LOOK_SECONDS, "looking for gemfleet"
        )
        facts = {host: answer.content() for host, answer in answers.items()}
        foreign = [f"{host} (process {found['others'][0]})" for host, found in facts.items() if found["others"]]
        if foreign:
            raise ClusterError(
                f"another Ray runs on {', '.join(foreign)}; end it there with `ray stop`, or choose other machines"
            )
        return facts

    def alive(self) -> list[dict[str, Any]]:
        """Ray's living nodes as the head knows them, see `on_node.nodes`."""
        answer = self.ssh.run(self.head, scripts.nodes(self.description), LOOK_SECONDS)
        if problem := answer.problem("asking Ray for its nodes"):
            raise ClusterError(problem)
        return list(answer.content())

    def _start(self, nodes: Sequence[NodeSection], token: str) -> None:
        """Starts the head before the others, which join it."""
        if not nodes:
            return
        self.tell(f"preparing {', '.join(node.host for node in nodes)}")
        setup = (lambda node: scripts.prepare(self.description, node, token), SETUP_SECONDS, "the setup")
        self.ssh.run_all(nodes, *setup)
        for group in ([node for node in nodes if node == self.head], [node for node in nodes if node != self.head]):
            if group:
                self.tell(f"starting Ray on {', '.join(node.host for node in group)}")
                self.ssh.run_all(group, self._start_script, START_SECONDS, "`ray start`")

    def _start_script(self, node: NodeSection) -> str:
        return scripts.start(self.description, node, self.addresses[node.host], self.addresses[self.head.host])

    def _wait_until_joined(self, nodes: Sequence[NodeSection]) -> None:
        deadline = time.monotonic() + JOIN_SECONDS
        wanted = {self.addresses[node.host] for node in nodes}
        while missing := wanted - {entry["address"] for entry in self.alive()}:
            if time.monotonic() > deadline:
                port = self.description.ports.gcs
                raise ClusterError(
                    f"{', '.join(sorted(missing))} did not join within {JOIN_SECONDS:g} s; check that they reach "
                    f"{self.addresses[self.head.host]}:{port} and the head reaches them at the ports of the file"
                )
            time.sleep(POLL_SECONDS)

    def _drain(self, node: NodeSection, seconds: int) -> None:
        address = self.addresses[node.host]
        answer = self.ssh.run(self.head, scripts.drain(self.description, address, seconds), LOOK_SECONDS)
        if problem := answer.problem("draining"):
            raise ClusterError(problem)
        said = answer.content()
        if not said["accepted"]:
            raise ClusterError(f"Ray refuses to drain {node.host}: {said['message']}")

    def _stop(self, nodes: Sequence[NodeSection]) -> None:
        if problems := self._stop_all(nodes):
            raise ClusterError("not everything is down:\n  " + "\n  ".join(problems))

    def _stop_all(self, nodes: Sequence[NodeSection]) -> list[str]:
        """Stops Ray on the nodes. Returns a line for each that ssh did not reach, or where a process did not end."""
        if nodes:
            self.tell(f"stopping Ray on {', '.join(node.host for node in nodes)}")
        answers = self.ssh.try_all(nodes, lambda _: scripts.stop(self.description, STOP_SECONDS), START_SECONDS)
        problems = []
        for host, answer in answers.items():
            if problem := answer.problem("stopping"):
                problems.append(problem)
            elif left := answer.content():
                problems.append(f"{host}: these processes did not end: {'; '.join(left)}")
        return problems

    def _status(self, answer: Answer, alive: Mapping[str, dict[str, Any]]) -> NodeStatus:
        address = self.addresses[answer.node.host]
        entry = alive.get(address, {})
        problem = answer.problem("looking for gemfleet")
        facts = None if problem else answer.content()
        resources = float(entry.get("cpus", 0)), float(entry.get("gpus", 0))
        return NodeStatus(answer.node, address, facts, bool(entry), *resources, problem)


def check_versions(facts: Mapping[str, Mapping[str, Any]]) -> None:
    """ClusterError when versions differ that must be equal. It names each version and the hosts that have it."""
    problems = []
    for package in COMPARED:
        by_version: dict[str, list[str]] = {}
        for host, found in facts.items():
            by_version.setdefault(str(found[package] or "none"), []).append(host)
        if len(by_version) > 1:
            problems.append(f"{package}: " + "; ".join(f"{v} on {', '.join(h)}" for v, h in by_version.items()))
    if problems:
        remedy = "install the same everywhere (`pip install -c constraints.txt`), by hand or in `setup`"
        raise ClusterError(f"the nodes' versions differ; {remedy}:\n  " + "\n  ".join(problems))

"""Examines a cluster: one probe on each node, then each group of checks in turn. Ray must be initialised."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..inventory import Node, only_on
from . import measure
from .check_facts import check_facts
from .check_measured import check_auth, check_loss, check_ports
from .report import Finding, Level


@dataclass(frozen=True)
class Examination:
    """What is examined: the living nodes, the head first; GEMFLEET_HOME; the model, if a configuration names one."""

    nodes: Sequence[Node]
    home: Path
    model: str | None = None


def quick_facts(nodes: Sequence[Node], home: Path) -> tuple[list[dict[str, Any]], list[Finding]]:
    """The facts of every node that answers, and a finding for each that does not."""
    import ray

    from .facts import node_facts

    task = ray.remote(num_cpus=0, max_retries=1)(node_facts)
    calls = {node.address: task.options(**only_on(node.id)).remote(str(home)) for node in nodes}
    return _facts_of(calls)


def check_quickly(nodes: Sequence[Node], home: Path) -> list[Finding]:
    """The checks that cost a moment: versions, GPUs, space, limits and interfaces of all nodes."""
    facts, silent = quick_facts(nodes, home)
    return silent + check_facts(facts, *_gpus(nodes))


def examine(work: Examination, tell: Callable[[str], None]) -> list[Finding]:
    """All checks. `tell` gets a few words before each group of them."""
    with probes(work.nodes) as by_address:
        tell("asking every node")
        calls = {address: probe.facts.remote(str(work.home)) for address, probe in by_address.items()}
        facts, findings = _facts_of(calls)
        answering = {node["address"]: by_address[node["address"]] for node in facts}
        findings += check_facts(facts, *_gpus(work.nodes))
        findings += check_auth(facts, measure.open_dashboard())
        findings += [measure.clock(address, probe) for address, probe in answering.items()]
        if work.model is not None:
            findings += measure.model_source(work.model, answering, work.nodes[0].address)
        tell("measuring the ways between nodes")
        links = measure.links(answering)
        findings += [*check_ports(links), *check_loss(links)] if len(answering) > 1 else []
        tell("measuring the stores")
        findings += measure.object_store(answering)
        findings += measure.checkpoint_store(answering, work.home)
    tell("summing over all ranks")
    return [*findings, *measure.collectives(work.nodes, facts)]


@contextmanager
def probes(nodes: Sequence[Node]) -> Iterator[dict[str, Any]]:
    """An actor on each node, by address. They end with the block."""
    import ray

    from .probe import Probe

    actor = ray.remote(num_cpus=0, max_concurrency=4)(Probe)
    made = {node.address: actor.options(**only_on(node.id)).remote() for node in nodes}
    try:
        yield made
    finally:
        for probe in made.values():
            ray.kill(probe)


def _facts_of(calls: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[Finding]]:
    import ray
    import ray.exceptions

    facts, silent = [], []
    for address, call in calls.items():
        try:
            facts.append(ray.get(call, timeout=measure.ANSWER_SECONDS))
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            said = (str(cause).strip() or type(cause).__name__).splitlines()[-1][:300]
            remedy = "install the same gemfleet there, and look at Ray's logs on it (/tmp/ray/session_latest/logs)"
            silent.append(Finding("answer", address, Level.FAIL, f"the node does not answer: {said}", remedy))
    return facts, silent


def _gpus(nodes: Sequence[Node]) -> tuple[dict[str, float], dict[str, float]]:
    """GPUs that Ray offers, and GPUs that it has given out, by address."""
    return {n.address: n.gpus for n in nodes}, {n.address: n.gpus - n.free_gpus for n in nodes}

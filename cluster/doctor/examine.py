"""Examines a cluster: one probe on each node, then each group of checks in turn. Ray must be initialised."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..inventory import Node
from .check_facts import check_facts
from .check_measured import (
    check_auth,
    check_checkpoint_store,
    check_clock,
    check_collective,
    check_loss,
    check_object_store,
    check_ports,
)
from .report import Finding, Level

ANSWER_SECONDS, LOADING_SECONDS = 60.0, 180.0
MIB = 2**20
LINK_BYTES, OBJECT_BYTES, CHECKPOINT_BYTES = 8 * MIB, 32 * MIB, 16 * MIB
COLLECTIVE_BYTES, GPU_COLLECTIVE_BYTES = 16 * MIB, 256 * MIB
NEIGHBOURS = 8  # every node sends to so many others: all ways on 9 nodes, a ring of overlapping arcs on more
CLOCK_REPEATS = 5
Probes = Mapping[str, Any]


@dataclass(frozen=True)
class Examination:
    """What is examined: the living nodes, GEMFLEET_HOME, and the model, if a configuration names one."""

    nodes: Sequence[Node]
    home: Path
    model: str | None = None


def quick_facts(nodes: Sequence[Node], home: Path) -> tuple[list[dict[str, Any]], list[Finding]]:
    """The facts of every node that answers, and a finding for each that does not."""
    import ray

    from .facts import node_facts

    task = ray.remote(num_cpus=0, max_retries=1)(node_facts)
    calls = {node.address: task.options(**_on(node)).remote(str(home)) for node in nodes}
    return _facts_of(calls)


def check_quickly(nodes: Sequence[Node], home: Path) -> list[Finding]:
    """The part that costs a moment: versions, GPUs, space, limits and interfaces of all nodes."""
    facts, silent = quick_facts(nodes, home)
    return silent + check_facts(facts, *_gpus(nodes))


def examine(work: Examination, tell: Callable[[str], None]) -> list[Finding]:
    """Everything. `tell` gets a word before each group of checks."""
    with probes(work.nodes) as by_address:
        tell("asking every node")
        calls = {address: probe.facts.remote(str(work.home)) for address, probe in by_address.items()}
        facts, findings = _facts_of(calls)
        answering = {node["address"]: by_address[node["address"]] for node in facts}
        findings += check_facts(facts, *_gpus(work.nodes))
        findings += check_auth(facts, open_dashboard())
        findings += [check_clock(address, *_skew(probe)) for address, probe in answering.items()]
        if work.model is not None:
            findings += check_model(work.model, answering, work.nodes[0].address)
        tell("measuring the ways between nodes")
        links = _links(answering)
        findings += [*check_ports(links), *check_loss(links)] if len(answering) > 1 else []
        tell("measuring the stores")
        findings += _object_store(answering, _own_address())
        findings += _checkpoint_store(answering, work.home)
    tell("summing over all ranks")
    return [*findings, all_reduce(work.nodes, facts)]


@contextmanager
def probes(nodes: Sequence[Node]) -> Iterator[dict[str, Any]]:
    """An actor on each node, by address; they are gone at the end."""
    import ray

    from .probe import Probe

    actor = ray.remote(num_cpus=0, max_concurrency=4)(Probe)
    made = {node.address: actor.options(**_on(node)).remote() for node in nodes}
    try:
        yield made
    finally:
        for probe in made.values():
            ray.kill(probe)


def open_dashboard() -> str | None:
    """The address of the cluster's job API if it answers without a token; None if it refuses, or there is none."""
    import httpx2
    import ray._private.worker

    url = ray._private.worker.global_worker.node.address_info.get("webui_url")
    if not url:
        return None
    with suppress(httpx2.HTTPError):
        if httpx2.get(f"http://{url}/api/jobs/", timeout=10, trust_env=False).status_code == 200:
            return f"http://{url}"
    return None


def check_model(model: str, probes: Probes, head: str) -> list[Finding]:
    """A folder or repository must be found on the head, from where it is staged; a hub id must be reachable from there.

    The other nodes are asked too, since a node that reaches the hub need not wait for the head's copy.
    """
    import ray

    if model == "demo" or Path(model).expanduser().exists():
        return [Finding("model", head, Level.PASS, f"{model} is here; nodes that lack it get it from the head")]
    if model.startswith((".", "/", "~")):
        remedy = "give a folder that the head has, or a Hugging Face id"
        return [Finding("model", head, Level.FAIL, f"{model} does not exist", remedy)]
    url = f"https://huggingface.co/{model}/resolve/main/config.json"
    answers = ray.get([probe.reachable.remote(url) for probe in probes.values()], timeout=ANSWER_SECONDS)
    remedy = "set HF_TOKEN and accept the model's terms, open the way to huggingface.co, or give a folder on the head"
    return [
        Finding("model", address, Level.FAIL if address == head else Level.WARN, f"{model}: {problem}", remedy)
        if problem
        else Finding("model", address, Level.PASS, f"{model} can be fetched")
        for address, problem in zip(probes, answers, strict=True)
    ]


def all_reduce(nodes: Sequence[Node], facts: Sequence[Mapping[str, Any]]) -> Finding:
    """A sum over one rank for each free GPU, or for each node with a CPU where there is no GPU."""
    import ray

    from .probe import RankProbe

    gpu = any(node.gpus for node in nodes)
    places = [node for node in nodes for _ in range(int(node.free_gpus) if gpu else int(node.cpus >= 1))]
    if not places:
        remedy = "run the doctor again when the runs have ended"
        return Finding("all-reduce", "cluster", Level.WARN, "no rank has a place: all GPUs are in use", remedy)
    size = GPU_COLLECTIVE_BYTES if gpu else COLLECTIVE_BYTES
    actor = ray.remote(num_cpus=0, num_gpus=int(gpu))(RankProbe)
    ranks = [actor.options(**_on(node)).remote() for node in places]
    try:
        master = ray.get([probe.address.remote() for probe in ranks], timeout=LOADING_SECONDS)[0]
        calls = [probe.all_reduce.remote(n, len(ranks), master, size, gpu) for n, probe in enumerate(ranks)]
        results, problem = ray.get(calls, timeout=ANSWER_SECONDS), ""
    except Exception as error:
        last = str(error).strip().splitlines() or [type(error).__name__]
        results, problem = [], f"{len(ranks)} ranks could not sum: {last[-1][:300]}"
    finally:
        for probe in ranks:
            ray.kill(probe)
    spread = len({node.address for node in places}) > 1
    return check_collective(results, size, _promised(facts) if spread else 0.0, problem)


def _promised(facts: Sequence[Mapping[str, Any]]) -> float:
    """Bytes a second of the slowest node's network; 0 where one does not say."""
    found = [node["interface"] for node in facts]
    return min((max(i["infiniband_gbits"] * 1e9, i["mbits"] * 1e6) / 8 for i in found), default=0.0)


def _skew(probe: Any) -> tuple[float, float]:
    """The node's clock less this one's, and by how much that can be wrong: half of the quickest question."""
    import ray

    best = (0.0, float("inf"))
    for _ in range(CLOCK_REPEATS):
        asked, started = time.time(), time.monotonic()
        theirs = ray.get(probe.clock.remote(), timeout=ANSWER_SECONDS)
        half = (time.monotonic() - started) / 2
        if half < best[1]:
            best = (theirs - (asked + half), half)
    return best


def _links(probes: Probes) -> dict[str, dict[str, Any]]:
    import ray

    addresses = list(probes)
    if len(addresses) < 2:
        return {}
    ports = dict(zip(addresses, ray.get([p.listen.remote(a) for a, p in probes.items()]), strict=True))
    calls = {}
    for index, sender in enumerate(addresses):
        others = [addresses[(index + step) % len(addresses)] for step in range(1, min(len(addresses), NEIGHBOURS + 1))]
        calls[sender] = probes[sender].send.remote([(other, ports[other]) for other in others], LINK_BYTES)
    return dict(zip(calls, ray.get(list(calls.values()), timeout=5 * ANSWER_SECONDS), strict=True))


def _object_store(probes: Probes, own: str) -> list[Finding]:
    """From the driver's node to each other one, as blocks of data and a staged model go."""
    import numpy as np
    import ray

    block = ray.put(np.zeros(OBJECT_BYTES, dtype=np.uint8))
    seconds = {a: ray.get(p.fetch.remote([block]), timeout=ANSWER_SECONDS) for a, p in probes.items() if a != own}
    return [check_object_store(address, OBJECT_BYTES, took) for address, took in seconds.items()]


def _checkpoint_store(probes: Probes, home: Path) -> list[Finding]:
    """From each node to the head's disk through the store that runs use, in a folder that is removed again."""
    import ray

    from ..checkpoint_store.actor import start_store
    from ..checkpoint_store.client import StoreClient

    name = f"doctor-{uuid.uuid4().hex[:8]}"
    folder = home / "cache" / name
    try:
        actor = start_store(name, folder, None)
        client = StoreClient(actor)
        store = client.attempt(client.begin_attempt())
        findings = []
        for step, (address, probe) in enumerate(probes.items(), start=1):
            took = ray.get(probe.upload.remote(store, step, CHECKPOINT_BYTES), timeout=ANSWER_SECONDS)
            findings.append(check_checkpoint_store(address, CHECKPOINT_BYTES, took))
        return findings
    except Exception as error:
        said = (str(error).strip() or repr(error)).splitlines()[-1][:300]
        remedy = "free some of the head's disk, or set GEMFLEET_HOME to another one"
        return [Finding("checkpoint store", "cluster", Level.FAIL, f"no checkpoint came home: {said}", remedy)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _facts_of(calls: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[Finding]]:
    import ray
    import ray.exceptions

    facts, silent = [], []
    for address, call in calls.items():
        try:
            facts.append(ray.get(call, timeout=ANSWER_SECONDS))
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            said = (str(cause).strip() or type(cause).__name__).splitlines()[-1][:300]
            remedy = "install the same gemfleet there, and look at Ray's logs on it (/tmp/ray/session_latest/logs)"
            silent.append(Finding("answer", address, Level.FAIL, f"the node does not answer: {said}", remedy))
    return facts, silent


def _gpus(nodes: Sequence[Node]) -> tuple[dict[str, float], dict[str, float]]:
    return {n.address: n.gpus for n in nodes}, {n.address: n.gpus - n.free_gpus for n in nodes}


def _on(node: Node) -> dict[str, Any]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node.id, soft=False)}


def _own_address() -> str:
    import ray.util

    return str(ray.util.get_node_ip_address())

"""What the doctor measures through its probes: clocks, ways between nodes, both stores and a collective.

Ray must be initialised. `probes` are the `Probe` actors by the address of their node.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..inventory import Node, only_on
from .check_measured import check_checkpoint_store, check_clock, check_collective, check_exchange, check_object_store
from .report import Finding, Level

ANSWER_SECONDS, LOADING_SECONDS = 60.0, 180.0
MIB = 2**20
LINK_BYTES, OBJECT_BYTES, CHECKPOINT_BYTES = 8 * MIB, 32 * MIB, 16 * MIB
COLLECTIVE_BYTES, GPU_COLLECTIVE_BYTES = 16 * MIB, 256 * MIB
NEIGHBOURS = 8  # to how many others a node sends: all pairs of up to 9 nodes, and of more a ring of overlapping arcs
CLOCK_REPEATS = 5
Probes = Mapping[str, Any]


def clock(address: str, probe: Any) -> Finding:
    """How far a node's clock is from this one's. The error is at most half of the quickest answer's time."""
    import ray

    skew, uncertainty = 0.0, float("inf")
    for _ in range(CLOCK_REPEATS):
        asked, started = time.time(), time.monotonic()
        theirs = ray.get(probe.clock.remote(), timeout=ANSWER_SECONDS)
        half = (time.monotonic() - started) / 2
        if half < uncertainty:
            skew, uncertainty = theirs - (asked + half), half
    return check_clock(address, skew, uncertainty)


def links(probes: Probes) -> dict[str, dict[str, Any]]:
    """`measure_link` from each node to its neighbours: by sender, then by receiver. Empty for a single node."""
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


def object_store(probes: Probes) -> list[Finding]:
    """The way from this node to each other one, which blocks of data and a staged model take."""
    import numpy as np
    import ray
    import ray.util

    own = ray.util.get_node_ip_address()
    block = ray.put(np.zeros(OBJECT_BYTES, dtype=np.uint8))
    seconds = {a: ray.get(p.fetch.remote([block]), timeout=ANSWER_SECONDS) for a, p in probes.items() if a != own}
    return [check_object_store(address, OBJECT_BYTES, took) for address, took in seconds.items()]


def checkpoint_store(probes: Probes, home: Path) -> list[Finding]:
    """The way from each node to the head's disk, through a store as runs use it. Its folder goes at the end."""
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


def model_source(model: str, probes: Probes, head: str) -> list[Finding]:
    """Whether the head has the model's folder, from where it is staged, or can fetch it from the hub.

    It asks the other nodes, too: a node that reaches the hub need not wait for the head's copy.
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


def collectives(nodes: Sequence[Node], facts: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """A sum over all ranks, and an exchange between neighbours.

    A rank for each free GPU, or one for each node with a CPU when the cluster has no GPU.
    """
    import ray

    from .probe import RankProbe

    gpu = any(node.gpus for node in nodes)
    places = [node for node in nodes for _ in range(int(node.free_gpus) if gpu else int(node.cpus >= 1))]
    if not places:
        remedy = "run the doctor again when the runs have ended"
        return [Finding("all-reduce", "cluster", Level.WARN, "no rank has a place: all GPUs are in use", remedy)]
    size = GPU_COLLECTIVE_BYTES if gpu else COLLECTIVE_BYTES
    actor = ray.remote(num_cpus=0, num_gpus=int(gpu))(RankProbe)
    ranks = [actor.options(**only_on(node.id)).remote() for node in places]
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
    promised = _promised(facts) if spread else 0.0
    found = [check_collective(results, size, promised, problem)]
    return [*found, check_exchange(results, size, promised)] if len(results) > 1 else found


def _promised(facts: Sequence[Mapping[str, Any]]) -> float:
    """Bytes a second of the slowest node's network; 0 when a node does not tell."""
    found = [node["interface"] for node in facts]
    return min((max(i["infiniband_gbits"] * 1e9, i["mbits"] * 1e6) / 8 for i in found), default=0.0)


def open_dashboard() -> str | None:
    """The address of the cluster's job API if it answers without a token. None if it refuses, or there is none."""
    import httpx2
    import ray._private.worker

    url = ray._private.worker.global_worker.node.address_info.get("webui_url")
    if not url:
        return None
    with suppress(httpx2.HTTPError):
        if httpx2.get(f"http://{url}/api/jobs/", timeout=10, trust_env=False).status_code == 200:
            return f"http://{url}"
    return None

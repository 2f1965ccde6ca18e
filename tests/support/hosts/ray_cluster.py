"""A real Ray cluster over the hosts of a fleet: `ray start` on each, as an operator would do it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from support.hosts.hosts import Fleet, Host
from support.tiny_model import save_tiny_gemma3
from support.tiny_tokenizer import tiny_tokenizer

WORK = "/tmp/work"  # on the head's private disk
GCS_PORT = 6379
DASHBOARD_PORT = 8265
OBJECT_STORE_BYTES = 256 << 20
START_TIMEOUT_S = 600.0  # a few seconds on an idle machine; all hosts share its cores

LIST_NODES = """
import json, ray
ray.init(address="auto", log_to_driver=False, logging_level="error")
print("NODES", json.dumps([[n["NodeManagerAddress"], n["NodeID"]] for n in ray.nodes() if n["Alive"]]))
"""


@dataclass(frozen=True)
class RayCluster:
    """A running cluster. `dashboard` answers inside the fleet's network only."""

    fleet: Fleet
    head: Host

    @property
    def dashboard(self) -> str:
        return f"http://{self.head.address}:{DASHBOARD_PORT}"

    def start_worker(self, name: str, cpus: int = 1) -> None:
        """`ray start` on a host; it joins the cluster as a new node."""
        _ray_start(self.fleet[name], cpus, [f"--address={self.head.address}:{GCS_PORT}"])

    def start_head(self) -> None:
        """`ray start --head` on a head whose Ray is gone."""
        _start_head(self.head, 0)
        _wait_for_job_server(self)

    def alive_nodes(self) -> dict[str, str]:
        """Node id of every node that Ray calls alive, by address."""
        output = self.head.run(["python", "-c", LIST_NODES], timeout_s=START_TIMEOUT_S).stdout
        (line,) = (line for line in output.splitlines() if line.startswith("NODES "))
        return dict(json.loads(line.removeprefix("NODES ")))


def start_ray(fleet: Fleet, cpus: dict[str, int]) -> RayCluster:
    """Start Ray on the hosts named by `cpus` with that many CPUs each; the first becomes the head.

    Returns when every node is alive and the job server answers. Closing the fleet ends it all.
    """
    head_name, *worker_names = cpus
    head = fleet[head_name]
    _start_head(head, cpus[head_name])
    for name in worker_names:
        _ray_start(fleet[name], cpus[name], [f"--address={head.address}:{GCS_PORT}"])
    cluster = RayCluster(fleet, head)
    _wait_for_job_server(cluster)
    alive = cluster.alive_nodes()
    expected = {fleet[name].address for name in cpus}
    assert set(alive) == expected, f"alive are {sorted(alive)}, expected {sorted(expected)}"
    return cluster


def _start_head(head: Host, cpus: int) -> None:
    _ray_start(head, cpus, ["--head", f"--port={GCS_PORT}", f"--dashboard-host={head.address}"])


def _ray_start(host: Host, cpus: int, options: list[str]) -> None:
    common = [f"--node-ip-address={host.address}", f"--num-cpus={cpus}", f"--object-store-memory={OBJECT_STORE_BYTES}"]
    host.run(["ray", "start", *options, *common, "--disable-usage-stats"], timeout_s=START_TIMEOUT_S)


def _wait_for_job_server(cluster: RayCluster, timeout_s: float = START_TIMEOUT_S) -> None:
    script = f"import urllib.request; urllib.request.urlopen('{cluster.dashboard}/api/version', timeout=5)"
    deadline = time.monotonic() + timeout_s
    while cluster.head.run(["python", "-c", script], check=False).returncode:
        assert time.monotonic() < deadline, f"no job server at {cluster.dashboard} after {timeout_s:g} s"
        time.sleep(1)


def write_run(host: Host, folder: str, max_steps: int, cluster: Mapping[str, Any], **train: Any) -> None:
    """`run.yaml` in a folder of the host: a run of `prepare_head`'s model and data, with these sections of `train`."""
    common = {
        "model": f"{WORK}/model",
        "data": {"train": f"{WORK}/data.jsonl", "max_length": 128},
        "lora": {"r": 4},
        "batch": {"global": 8},
        "epochs": 100_000,
        "max_steps": max_steps,
        "precision": "fp32",
    }
    host.disk(folder).mkdir(exist_ok=True)
    content = {"train": {**common, **train}, "cluster": dict(cluster)}
    host.disk(f"{folder}/run.yaml").write_text(yaml.safe_dump(content))


def prepare_head(head: Host) -> None:
    """A tiny random Gemma 3 with its tokenizer, and data, that no other host has."""
    model, data = head.disk(f"{WORK}/model"), head.disk(f"{WORK}/data.jsonl")
    tiny_tokenizer(save_tiny_gemma3(model))
    rows = [{"prompt": f"what is {n} and {n}\n", "completion": f"the answer is {2 * n}"} for n in range(48)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

"""Faults that need a network, one after another in one run of two ranks on three worker hosts.

The order is part of the test: each fault begins where the one before left the cluster.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from gemfleet.benchmarks.faults.recovery import recovery_of
from gemfleet.cluster.registry.run_registry import Run, RunRegistry
from support.fault_table import tell, verifies
from support.hosts.hosts import Host, fleet_of, wait_until
from support.hosts.ray_cluster import GCS_PORT, RayCluster, prepare_head, start_ray, write_run
from support.hosts.remote_registry import RemoteRegistry

pytestmark = [pytest.mark.hosts, pytest.mark.faults, pytest.mark.timeout(900), pytest.mark.slow]
ID = "faults"
SAVE_EVERY = 50
JOB = "/tmp/job"
HOME = "/tmp/home/.gemfleet"
WORKERS = ("left", "right", "spare")


@dataclass
class Scene:
    """The cluster, and the one run on it."""

    cluster: RayCluster
    registry: RemoteRegistry

    @property
    def head(self) -> Host:
        return self.cluster.head

    @property
    def home(self) -> Path:
        return self.head.disk(HOME)

    @property
    def run(self) -> Run:
        return self.registry.get_run(ID)

    def step(self) -> int:
        newest = self.registry.latest_metrics(ID, "step")
        return int(newest["step"]) if newest else 0

    def events(self, kind: str, after: float = 0.0) -> list[dict[str, Any]]:
        return [e for e in self.registry.events(ID) if e["kind"] == kind and e["time"] > after]

    def rank_hosts(self) -> list[str]:
        """Names of the hosts that rank 0 and rank 1 run on."""
        names = {self.cluster.fleet[name].address: name for name in WORKERS}
        return [names[rank["address"]] for rank in self.registry.ranks(ID)]

    def trains(self, steps: int = 3) -> None:
        """Until it has made some steps from now on, with both ranks."""
        at = time.time()

        def further() -> bool:
            new = [m for m in self.registry.metrics(ID, kind="step") if m["time"] > at]
            return len(new) >= steps and len(self.registry.ranks(ID)) == 2

        wait_until(further, f"{self.run.state} ({self.run.reason}) at step {self.step()}")


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with fleet_of(["head", *WORKERS], subnet="10.231.9") as fleet:
        cluster = start_ray(fleet, cpus={"head": 0, "left": 1, "right": 1, "spare": 1})
        prepare_head(cluster.head)
        spread = {"workers": 2, "placement": "SPREAD"}
        train = {"evaluation": {"every": "never"}, "checkpoint": {"every": SAVE_EVERY}}
        write_run(cluster.head, JOB, 100_000, spread, **train)
        registry = RemoteRegistry(cluster.head)
        yield Scene(cluster, registry)
        registry.close()


def test_the_same_submission_twice(scene: Scene) -> None:
    submit = ["gemfleet", "submit", f"{JOB}/run.yaml", "--address", scene.cluster.dashboard, "--id", ID]
    scene.head.run(submit, timeout_s=120)
    again = scene.head.run(submit, timeout_s=120, check=False)
    assert (again.returncode, "was submitted to" in again.stdout) == (2, True), again.stdout
    wait_until(lambda: bool(scene.registry.list_runs()), "no run")
    wait_until(lambda: bool(scene.registry.checkpoints(ID)), "no checkpoint")
    started = time.monotonic()
    twin = scene.head.run(["gemfleet", "train", f"{JOB}/run.yaml", "--id", ID], timeout_s=120, check=False)
    assert (twin.returncode, "exists already" in twin.stdout) == (2, True), twin.stdout
    seconds = time.monotonic() - started
    resumed = scene.head.run(["gemfleet", "resume", ID], timeout_s=120, check=False)
    assert (resumed.returncode, f"run {ID} is training" in resumed.stdout) == (2, True), resumed.stdout
    assert len(scene.registry.list_runs()) == 1
    scene.trains()
    tell("the same id submitted twice, and resumed while it runs", "refused; the first trains on", "-", 0, seconds)


def test_a_partition_during_an_upload(scene: Scene) -> None:
    host, checkpoints = scene.rank_hosts()[0], scene.home / "runs" / ID / "checkpoints"
    with scene.cluster.fleet.slowed(host, "1mbit", "16kb"):  # so that the upload can be met
        wait_until(lambda: any(checkpoints.glob(".incoming-*/.*.part")), "no upload was met", pause=0.002)
        (part, *_) = checkpoints.glob(".incoming-*")
        step = int(part.name.split("-")[1])
        scene.cluster.fleet.unplug(host)
        at = time.time()
        time.sleep(6)
        assert not (checkpoints / f"checkpoint-{step}").exists()
        scene.cluster.fleet.plug_in(host)
    wait_until(lambda: step in [c["step"] for c in scene.registry.checkpoints(ID)], "it was not committed")
    committed = next(c["created_at"] for c in scene.registry.checkpoints(ID) if c["step"] == step)
    scene.trains()
    assert scene.events("places_lost") == scene.events("checkpoint_failed") == []
    assert "restarting" not in states(scene)
    tell("cable pulled for 6 s during an upload", "trains on; committed after all", "-", 0, committed - at)


def test_a_drained_node(scene: Scene) -> None:
    host, spare = scene.rank_hosts()[1], free_host(scene)
    at, address = time.time(), scene.cluster.fleet[host].address
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test"]
    deadline = ["--deadline-remaining-seconds", "120"]
    node = scene.cluster.alive_nodes()[address]
    command = ["ray", "drain-node", "--address", f"{scene.head.address}:{GCS_PORT}", "--node-id", node]
    scene.head.run([*command, *reason, *deadline], timeout_s=60)
    wait_until(lambda: bool(scene.events("moved", at)), "it did not move")
    (moved,) = scene.events("moved", at)
    saved = scene.registry.checkpoints(ID)[-1]
    assert moved["data"]["excused"] is True
    assert address in moved["message"]
    scene.trains()
    assert sorted(scene.rank_hosts()) == sorted({*WORKERS} - {host})
    assert spare in scene.rank_hosts()
    recovery = recovery_of(cast(RunRegistry, scene.registry), ID, at, saved["step"])
    assert recovery.steps_lost == 0
    tell("node drained, another one free", "trains on, no failure", recovery.resumed, 0, recovery.seconds)
    scene.cluster.fleet[host].kill_all()  # its deadline, so to speak


def test_a_lost_node_without_another(scene: Scene) -> None:
    wait_until(lambda: len(scene.cluster.alive_nodes()) == 3, "the drained node is still there")
    lost = scene.rank_hosts()[1]
    gone = free_host(scene)
    at, last = time.time(), scene.step()
    scene.cluster.fleet[lost].kill_all()
    wait_until(lambda: bool(scene.events("waiting", at)), "it does not say what it waits for")
    run = scene.run
    assert (str(run.state), "asked for 2 workers" in run.reason) == ("restarting", True), run.reason
    shown = scene.head.run(["gemfleet", "show", ID], timeout_s=60).stdout
    assert "asked for 2 workers" in shown
    joined = time.time()
    scene.cluster.start_worker(gone)  # with a model that was staged to this host as another node
    scene.trains()
    assert lost not in scene.rank_hosts()
    recovery = recovery_of(cast(RunRegistry, scene.registry), ID, at, last)
    assert recovery.steps_lost <= 2 * SAVE_EVERY  # one interval, and the checkpoint that was on its way
    seconds = recovery.seconds - (joined - at)
    tell(
        "node lost, none free until one joins", "waits, then trains on", recovery.resumed, recovery.steps_lost, seconds
    )


def test_a_restarted_head(scene: Scene) -> None:
    last = scene.step()
    before = [c["step"] for c in scene.registry.checkpoints(ID)]
    scene.head.kill_all()
    scene.cluster.start_head()
    for name in scene.rank_hosts():
        scene.cluster.fleet[name].kill_all()
        scene.cluster.start_worker(name)
    runs = scene.head.run(["gemfleet", "runs", "--json"], timeout_s=60).stdout
    assert [run["state"] for run in json.loads(runs[runs.index("[") :])] == ["interrupted"], runs
    at = time.time()
    resume = scene.head.command(["gemfleet", "resume", ID], timeout_s=300)
    process = subprocess.Popen(resume, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_until(lambda: bool(scene.events("resume", at)), "it was not resumed")
        scene.trains()
        scene.head.run(["gemfleet", "stop", ID, "--wait"], timeout_s=200)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert str(scene.run.state) == "stopped", output
    assert len(scene.registry.list_runs()) == 1
    assert {*before} <= {c["step"] for c in scene.registry.checkpoints(ID)}
    recovery = recovery_of(cast(RunRegistry, scene.registry), ID, at, last)
    tell("head restarted, then `gemfleet resume`", "interrupted, then trains on", *facts(recovery))
    verifies(scene.home, ID)
    newest = scene.registry.checkpoints(ID)[-1]["step"]
    state = json.loads((scene.home / f"runs/{ID}/checkpoints/checkpoint-{newest}/trainer_state.json").read_text())
    trained = [entry["step"] for entry in state["log_history"] if "loss" in entry]
    assert trained == list(range(1, newest + 1))  # through all of these faults every step counts once


def facts(recovery: Any) -> tuple[str, int, float]:
    return recovery.resumed, recovery.steps_lost, recovery.seconds


def free_host(scene: Scene) -> str:
    (name,) = {*WORKERS} - {*scene.rank_hosts()}
    return name


def states(scene: Scene) -> list[str]:
    return [event["data"]["state"] for event in scene.registry.events(ID) if event["kind"] == "state"]

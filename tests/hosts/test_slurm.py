"""A real Slurm over hosts with private disks: two nodes train, and a run outlives its job's time limit."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gemfleet.cluster.bringup.description import ClusterDescription
from gemfleet.cluster.bringup.templates.render import render
from support.hosts.hosts import HOME, RAY_PATIENCE, fleet_of, wait_until
from support.hosts.ray_cluster import prepare_head, write_run
from support.hosts.slurm_hosts import FOLDER, Slurm, why_no_slurm

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1500), pytest.mark.slow]
RUNS = f"{HOME}/.gemfleet/runs"
STEPS, EVERY = 400, 25
CLUSTER = {"workers": 2, "gpus_per_worker": 0, "placement": "SPREAD"}
STOP_SECONDS = 120  # more than is left once the time limit is changed, so that Slurm signals at once


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    if reason := why_no_slurm():
        pytest.skip(reason)
    with fleet_of(["n1", "n2"], subnet="10.231.8") as fleet:
        running = Slurm(fleet)
        for host in running.hosts:  # no file is shared, so an array's task may begin on either
            prepare_head(host)
            write_run(host, FOLDER, STEPS, CLUSTER, checkpoint={"every": EVERY})
        yield running


def script(gpus: int) -> str:
    description = ClusterDescription.model_validate(
        {
            "name": "lab",
            "programs": str(Path(sys.executable).parent),
            "slurm": {"gpus_per_node": 1, "cpus_per_node": 1, "time_limit": "00:30:00"},
            "job_stop_wait_s": STOP_SECONDS,
            "environment": {**RAY_PATIENCE, "RAY_memory_monitor_refresh_ms": "0", "HF_HUB_OFFLINE": "1"},
        }
    )
    return render("slurm", description, gpus, None)


def shown(slurm: Slurm, run: str) -> dict[str, Any]:
    """The run as its head knows it; {} before it begins."""
    done = slurm.head.run(["gemfleet", "show", run, "--json"], check=False)
    return dict(json.loads(done.stdout)) if done.returncode == 0 else {}


def step_of(slurm: Slurm, run: str) -> int:
    return int((shown(slurm, run).get("newest_step") or {}).get("step", 0))


def losses(slurm: Slurm, run: str) -> list[float]:
    state = json.loads(slurm.head.disk(f"{RUNS}/{run}/checkpoints/checkpoint-{STEPS}/trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


def test_a_run_over_two_nodes_outlives_its_time_limit_and_a_requeue(slurm: Slurm) -> None:
    job = slurm.submit(script(gpus=2), "run.yaml")
    run = f"slurm-{job}"
    try:
        wait_until(lambda: step_of(slurm, run) >= 2 * EVERY, "it makes no steps", 300)
        slurm.leave_about(job, STOP_SECONDS // 2)
        wait_until(
            lambda: "goes on when Slurm starts the job again" in slurm.output(job), "the job was not queued again", 180
        )
        stopped = step_of(slurm, run)
        assert shown(slurm, run)["checkpoints"][-1]["step"] == stopped < STEPS
        slurm.command("scontrol", "update", f"JobId={job}", "TimeLimit=30")
        wait_until(lambda: step_of(slurm, run) >= stopped + EVERY, "it makes no steps after its time limit", 300)
        slurm.command("scontrol", "requeue", job)
        wait_until(lambda: slurm.state(job) == "COMPLETED", "the job has not ended", 600)
    except AssertionError:
        print(slurm.output(job))
        raise
    found = shown(slurm, run)
    assert found["state"] == "succeeded"
    assert {rank["address"] for rank in found["ranks"]} == {host.address for host in slurm.hosts}
    assert not slurm.hosts[1].disk(RUNS).exists()
    undisturbed = slurm.submit(script(gpus=2), "run.yaml")
    wait_until(lambda: slurm.state(undisturbed) == "COMPLETED", "the undisturbed job has not ended", 600)
    assert losses(slurm, run) == pytest.approx(losses(slurm, f"slurm-{undisturbed}"), abs=1e-5)


def test_tasks_of_an_array_do_not_meet(slurm: Slurm) -> None:
    few = ["--set", "train.max_steps=4", "--set", "cluster.workers=1"]
    job = slurm.submit(script(gpus=1), "run.yaml", *few, options=("--array=0-1",))
    for task in ("0", "1"):
        wait_until(lambda task=task: slurm.state(f"{job}_{task}") == "COMPLETED", f"task {task} has not ended", 300)  # type: ignore[misc]
    runs = [[path.name for path in host.disk(RUNS).iterdir() if path.name.startswith("slurm-")] for host in slurm.hosts]
    ours = [name for names in runs for name in names if name.startswith(f"slurm-{job}-")]
    assert sorted(ours) == [f"slurm-{job}-0", f"slurm-{job}-1"]


def test_submit_asks_slurm_and_brings_the_configuration_along(slurm: Slurm) -> None:
    command = ["gemfleet", "submit", "run.yaml", "--slurm", "--set", "train.max_steps=4", "--json"]
    queued = json.loads(slurm.command(*command))
    asked = {"partition": "main", "gpus_per_node": 1, "cpus_per_node": 1, "time_limit": "24:00:00"}
    assert queued["slurm"].items() >= asked.items()
    wait_until(lambda: slurm.state(queued["job"]) == "COMPLETED", "the job has not ended", 300)
    found = shown(slurm, queued["run"])
    assert (found["state"], len(found["ranks"])) == ("succeeded", 2), slurm.output(queued["job"])

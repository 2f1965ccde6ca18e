"""A head and two workers with disks of their own: training runs on the workers, and every checkpoint is on the head."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from support.hosts.hosts import Host
from support.hosts.ray_cluster import WORK, RayCluster, write_run

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(1500), pytest.mark.slow]
JOB_FOLDER = "/tmp/job"
RUNS = "/tmp/home/.gemfleet/runs"
JOB_TIMEOUT_S = 600.0
PRIVATE_DISKS = ("/tmp", "/run", "/var/tmp", "/dev/shm")
CHECKPOINT_FILES = {"adapter_model.safetensors", "optimizer.safetensors", "trainer_state.json", "data_state.json"}


def test_job_trains_on_the_workers_and_checkpoints_come_home(cluster: RayCluster) -> None:
    write_config(cluster.head, max_steps=6)
    submit = ["ray", "job", "submit", "--address", cluster.dashboard, "--working-dir", JOB_FOLDER]
    output = cluster.head.run([*submit, "--", "gemfleet", "train", "run.yaml"], timeout_s=JOB_TIMEOUT_S).stdout
    run = newest_run(cluster.head)
    assert run["state"] == "succeeded", output
    assert sorted(rank["rank"] for rank in run["ranks"]) == [0, 1]
    assert {rank["address"] for rank in run["ranks"]} == worker_addresses(cluster)
    assert [entry["step"] for entry in run["checkpoints"]] == [2, 4, 6]
    for step in (2, 4, 6):
        check_checkpoint(cluster.head, run["id"], step)
    assert_workers_hold_no_checkpoint(cluster)


def test_submit_follows_from_another_host(cluster: RayCluster) -> None:
    """From a machine that has the configuration only; the driver still runs on the head."""
    left = cluster.fleet["left"]
    write_config(left, max_steps=2)
    submit = ["gemfleet", "submit", f"{JOB_FOLDER}/run.yaml", "--address", cluster.dashboard, "--name", "from-left"]
    output = left.run([*submit, "--follow"], timeout_s=JOB_TIMEOUT_S).stdout
    run = newest_run(cluster.head)
    assert run["id"].startswith("from-left"), output
    assert run["state"] == "succeeded", output
    assert run["id"] in output
    check_checkpoint(cluster.head, run["id"], 2)
    assert_workers_hold_no_checkpoint(cluster)


def test_ray_job_stop_saves_and_ends(cluster: RayCluster) -> None:
    """Ray kills a job 3 s after it was asked to stop, unless the job's environment says otherwise, as ours does."""
    head = cluster.head
    write_config(head, max_steps=100_000)
    submit = ["gemfleet", "submit", f"{JOB_FOLDER}/run.yaml", "--address", cluster.dashboard, "--id", "endless"]
    head.run(submit, timeout_s=120)
    wait_for_manifest(head, "endless")
    head.run(["ray", "job", "stop", "--address", cluster.dashboard, "endless"], timeout_s=300)
    run = newest_run(head)
    assert run["state"] == "stopped"
    last = run["checkpoints"][-1]["step"]
    check_checkpoint(head, run["id"], last)
    assert last == run["newest_step"]["step"]
    assert_workers_hold_no_checkpoint(cluster)


def write_config(host: Host, max_steps: int) -> None:
    data = {"train": f"{WORK}/data.jsonl", "max_length": 128, "eval_fraction": 0.2}
    checkpoint = {"every": 2 if max_steps < 10 else 20}
    write_run(
        host, JOB_FOLDER, max_steps, {"workers": 2}, data=data, evaluation={"every": "never"}, checkpoint=checkpoint
    )


def newest_run(head: Host) -> dict[str, Any]:
    output = head.run(["gemfleet", "show", "latest", "--json"], timeout_s=120).stdout
    return dict(json.loads(output[output.index("{") :]))


def worker_addresses(cluster: RayCluster) -> set[str]:
    return {cluster.fleet[name].address for name in ("left", "right")}


def check_checkpoint(head: Host, run: str, step: int) -> None:
    """The files are there, the manifest names them with their sizes, and the adapter's tensors can be read."""
    folder = head.disk(f"{RUNS}/{run}/checkpoints/checkpoint-{step}")
    assert CHECKPOINT_FILES | {"manifest.json", "adapter_config.json"} <= {path.name for path in folder.iterdir()}
    manifest = (folder / "manifest.json").read_text()
    assert all(name in manifest for name in CHECKPOINT_FILES)
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as adapter:
        names = list(adapter.keys())
        assert any(adapter.get_tensor(name).abs().max() > 0 for name in names if "lora_B" in name)


def assert_workers_hold_no_checkpoint(cluster: RayCluster) -> None:
    base = cluster.head.disk(f"{WORK}/model/model.safetensors").read_bytes()
    for name in ("left", "right"):
        found = files_of(cluster.fleet[name])
        assert [path for path in found if path.name in CHECKPOINT_FILES] == []
        weights = [path for path in found if path.suffix == ".safetensors"]
        assert all(path.read_bytes() == base for path in weights), weights


def files_of(host: Host) -> list[Path]:
    """Every file on the host's own disks; nothing else of it can be written to."""
    found = []
    for disk in map(host.disk, PRIVATE_DISKS):
        device = disk.stat().st_dev
        for root, folders, names in os.walk(disk):
            folders[:] = [name for name in folders if Path(root, name).lstat().st_dev == device]
            found += [Path(root, name) for name in names if not Path(root, name).is_symlink()]
    return found


def wait_for_manifest(head: Host, name: str, timeout_s: float = JOB_TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not list(head.disk(RUNS).glob(f"{name}*/checkpoints/checkpoint-*/manifest.json")):
        assert time.monotonic() < deadline, f"no checkpoint of {name} after {timeout_s:g} s"
        time.sleep(1)

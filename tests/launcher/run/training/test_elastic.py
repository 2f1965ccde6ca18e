"""An elastic run on real nodes of one machine: it shrinks when a node is lost and grows when one joins."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gemfleet.cluster.registry.run_registry import RunRegistry
from support.tiny_run import ends, gemfleet, make_workplace, start, states, wait_for_step

pytestmark = [pytest.mark.slow, pytest.mark.faults]
# Without an end of its own, and with a schedule that does not depend on it: the run is stopped once it has grown.
RECIPE = (
    *("train.optim.schedule=constant", "train.optim.learning_rate=1e-4", "train.evaluation.every=never"),
    *("train.checkpoint.every=20", "cluster.cpus_per_worker=2", "cluster.keep_checkpoints=3"),
)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("work"))


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A cluster of a head and one worker node with two CPUs each."""
    from ray.cluster_utils import Cluster

    temp = tempfile.mkdtemp(prefix="gf-ray-")  # short: a socket's path may have 107 bytes
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_TMPDIR", temp)
    cluster = Cluster()
    try:
        for _ in range(2):
            add_node(cluster)
        cluster.wait_for_nodes(timeout=120)
        yield cluster
    finally:
        cluster.shutdown()
        patch.undo()
        shutil.rmtree(temp, ignore_errors=True)


def add_node(cluster: Any) -> Any:
    return cluster.add_node(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20)


def losses(registry: RunRegistry) -> dict[int, float]:
    (run,) = registry.list_runs()
    return {record["step"]: record["loss"] for record in registry.metrics(run.id, kind="step")}


def test_it_shrinks_and_grows_and_its_losses_stay(nodes: Any, workplace: Path, tmp_path: Path) -> None:
    whole, home = tmp_path / "whole", tmp_path / "home"
    process = start(workplace, home, nodes.address, 1000.0, (*RECIPE, "cluster.workers={min: 1, max: 2}"))
    registry = wait_for_step(home, 30)
    (run,) = registry.list_runs()
    assert len(registry.ranks(run.id)) == 2
    nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
    wait_for_moves(registry, run.id, [(2, 1)])
    wait_for_ranks(registry, run.id, 1)
    add_node(nodes)
    wait_for_moves(registry, run.id, [(2, 1), (1, 2)])
    wait_for_ranks(registry, run.id, 2)
    ends(gemfleet(workplace, home, "stop", run.id))
    ends(process)
    assert states(registry, run.id)[-1] == "stopped"
    assert [event["data"]["excused"] for event in moved(registry, run.id)] == [False, True]
    ours = losses(registry)
    assert list(ours) == list(range(1, len(ours) + 1))
    ends(start(workplace, whole, nodes.address, 1000.0, (*RECIPE, f"train.max_steps={len(ours)}")))
    theirs = losses(RunRegistry(whole / "gemfleet.db"))
    largest = max(abs(ours[step] - theirs[step]) for step in theirs)
    print(f"\nelastic, 2 -> 1 -> 2 ranks over {len(ours)} steps: losses differ by at most {largest:.1e}")
    assert ours.keys() == theirs.keys()
    assert largest < 1e-4


def moved(registry: RunRegistry, run_id: str) -> list[dict[str, Any]]:
    return [event for event in registry.events(run_id) if event["kind"] == "moved"]


def wait_for_moves(registry: RunRegistry, run_id: str, sizes: list[tuple[int, int]], seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while [(e["data"]["from"], e["data"]["to"]) for e in moved(registry, run_id)] != sizes:
        told = json.dumps([event["message"] for event in registry.events(run_id)][-12:], indent=1)
        assert time.monotonic() < deadline, told
        time.sleep(0.2)


def wait_for_ranks(registry: RunRegistry, run_id: str, number: int, seconds: float = 120.0) -> None:
    """Until so many ranks have reported a step of theirs."""
    at, deadline = time.time(), time.monotonic() + seconds
    while True:
        newest = registry.latest_metrics(run_id, "step")
        if newest and newest["time"] > at and len(registry.ranks(run_id)) == number:
            return
        assert time.monotonic() < deadline
        time.sleep(0.2)

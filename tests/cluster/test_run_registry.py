"""The registry keeps runs apart, never leaves an end state, and serves several processes at once."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gemfleet.cluster.errors import ClusterError, RunConflict, UnknownRun
from gemfleet.cluster.run_registry import RunRegistry, RunState


@pytest.fixture
def registry(tmp_path: Path) -> RunRegistry:
    registry = RunRegistry(tmp_path / "home" / "gemfleet.db")
    registry.create_run("demo-1", "demo", "train: {}")
    return registry


def test_states_and_events_in_order(registry: RunRegistry) -> None:
    for state in (RunState.PREFLIGHT, RunState.TRAINING, RunState.TRAINING, RunState.SUCCEEDED):
        registry.transition("demo-1", state)
    kinds = [event["data"]["state"] for event in registry.events("demo-1")]
    assert kinds == ["queued", "preflight", "training", "succeeded"]
    run = registry.get_run("demo-1")
    assert run.state.is_terminal
    assert run.ended_at is not None


def test_an_end_state_is_never_left(registry: RunRegistry) -> None:
    registry.transition("demo-1", RunState.FAILED, "out of memory")
    with pytest.raises(RunConflict, match="failed already"):
        registry.transition("demo-1", RunState.TRAINING)
    with pytest.raises(RunConflict, match="nothing to stop"):
        registry.request_stop("demo-1")
    assert registry.get_run("demo-1").reason == "out of memory"


def test_the_same_id_twice_is_a_conflict(registry: RunRegistry) -> None:
    with pytest.raises(RunConflict, match="exists already"):
        registry.create_run("demo-1", "demo", "")


def test_a_step_reported_again_replaces_the_older_record(registry: RunRegistry) -> None:
    registry.add_metrics("demo-1", [{"kind": "step", "step": 1, "loss": 3.0}, {"kind": "step", "step": 2, "loss": 2.0}])
    registry.add_metrics(
        "demo-1", [{"kind": "step", "step": 2, "loss": 1.5}, {"kind": "eval", "step": 2, "eval_loss": 1.0}]
    )
    assert [r["loss"] for r in registry.metrics("demo-1", kind="step")] == [3.0, 1.5]
    assert [r["kind"] for r in registry.metrics("demo-1", since_step=2)] == ["eval", "step"]
    latest = registry.latest_metrics("demo-1", "step")
    assert latest is not None
    assert latest["loss"] == 1.5


def test_runs_are_found_by_prefix_and_latest(registry: RunRegistry) -> None:
    registry.create_run("demo-2", "demo", "")
    assert registry.find_run("latest").id == "demo-2"
    assert registry.find_run("demo-1").id == "demo-1"
    with pytest.raises(UnknownRun, match="2 runs begin with 'demo'"):
        registry.find_run("demo")
    with pytest.raises(UnknownRun, match="no run 'other'"):
        registry.find_run("other")
    assert [run.id for run in registry.list_runs()] == ["demo-2", "demo-1"]


def test_many_writers_lose_nothing(registry: RunRegistry) -> None:
    other = RunRegistry(registry.path)
    with ThreadPoolExecutor(8) as pool:
        for done in [
            pool.submit((registry, other)[n % 2].add_metrics, "demo-1", [{"kind": "step", "step": n}])
            for n in range(60)
        ]:
            done.result()
    assert [r["step"] for r in registry.metrics("demo-1")] == list(range(60))


def test_a_run_whose_driver_died_is_interrupted(registry: RunRegistry) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    registry.create_run("gone", "gone", "", driver_pid=process.pid)
    registry.create_run("here", "here", "", driver_pid=os.getpid())
    assert registry.mark_interrupted() == []
    process.communicate()
    assert registry.mark_interrupted() == ["gone"]
    assert registry.get_run("gone").state is RunState.INTERRUPTED
    assert registry.get_run("here").state is RunState.QUEUED


def test_a_newer_schema_is_refused(registry: RunRegistry) -> None:
    import sqlite3

    db = sqlite3.connect(registry.path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(ClusterError, match="newer gemfleet"):
        RunRegistry(registry.path)


def test_only_a_run_that_has_ended_is_launched_again(registry: RunRegistry) -> None:
    with pytest.raises(RunConflict, match="stop it first"):
        registry.reopen("demo-1", "{}")
    registry.request_stop("demo-1")
    registry.add_event("demo-1", "fatal", "of the first launch")
    registry.transition("demo-1", RunState.INTERRUPTED, "gone")
    registry.reopen("demo-1", '{"new": 1}', os.getpid())
    run = registry.get_run("demo-1")
    assert (run.state, run.config, run.stop_requested, run.ended_at, run.reason) == (
        "queued",
        '{"new": 1}',
        False,
        None,
        "",
    )
    assert registry.events("demo-1", registry.launch_seq("demo-1")) == []
    with pytest.raises(RunConflict, match="queued"):  # the second of two that resume at once
        registry.reopen("demo-1", "{}")

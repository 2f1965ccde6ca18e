"""The registry keeps runs apart, never leaves an end state, and serves several processes at once."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from gemfleet.cluster.errors import ClusterError, RunConflict, UnknownRun
from gemfleet.cluster.registry_reader import RegistryReader
from gemfleet.cluster.run_figures import figures_of
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
    db = sqlite3.connect(registry.path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(ClusterError, match="newer gemfleet"):
        RunRegistry(registry.path)


# The tables as the first version made them.
VERSION_1 = """
CREATE TABLE runs (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '',
    created_at REAL NOT NULL, updated_at REAL NOT NULL, ended_at REAL, config TEXT NOT NULL,
    driver_pid INTEGER, driver_started REAL, stop_requested INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL REFERENCES runs(id), time REAL NOT NULL,
    kind TEXT NOT NULL, message TEXT NOT NULL, data TEXT NOT NULL DEFAULT '{}'
);
CREATE INDEX events_of_run ON events(run_id, seq);
CREATE TABLE metrics (
    run_id TEXT NOT NULL REFERENCES runs(id), kind TEXT NOT NULL, step INTEGER NOT NULL, time REAL NOT NULL,
    record TEXT NOT NULL, PRIMARY KEY (run_id, kind, step)
);
CREATE TABLE checkpoints (
    run_id TEXT NOT NULL REFERENCES runs(id), step INTEGER NOT NULL, path TEXT NOT NULL, bytes INTEGER NOT NULL,
    created_at REAL NOT NULL, generation INTEGER NOT NULL, PRIMARY KEY (run_id, step)
);
CREATE TABLE ranks (
    run_id TEXT NOT NULL REFERENCES runs(id), rank INTEGER NOT NULL, node TEXT NOT NULL, address TEXT NOT NULL,
    pid INTEGER NOT NULL, heartbeat REAL NOT NULL, PRIMARY KEY (run_id, rank)
);
INSERT INTO runs VALUES ('old-1', 'old', 'succeeded', '', 1.0, 2.0, 2.0, 'train: {}', NULL, NULL, 0);
INSERT INTO events (run_id, time, kind, message) VALUES ('old-1', 1.0, 'note', 'kept');
INSERT INTO metrics VALUES ('old-1', 'step', 1, 1.0, '{"kind": "step", "step": 1, "loss": 2.5}');
INSERT INTO checkpoints VALUES ('old-1', 1, '/old/checkpoint-1', 100, 1.5, 1);
PRAGMA user_version = 1;
"""


def test_a_file_of_an_older_version_is_migrated_with_all_it_holds(tmp_path: Path, registry: RunRegistry) -> None:
    old = tmp_path / "old" / "gemfleet.db"
    old.parent.mkdir()
    with closing(sqlite3.connect(old)) as db:
        db.executescript(VERSION_1)
    with ThreadPoolExecutor(4) as pool:  # several processes may find it at once
        (migrated, *_) = pool.map(lambda _: RunRegistry(old), range(4))
    assert migrated.get_run("old-1").state is RunState.SUCCEEDED
    assert [event["message"] for event in migrated.events("old-1")] == ["kept"]
    assert migrated.metrics("old-1")[0]["loss"] == 2.5
    migrated.reopen("old-1", "{}")
    migrated.add_checkpoint("old-1", 2, "/old/checkpoint-2", 200, 2, 0.5)
    assert [(c["bytes"], c["seconds"]) for c in migrated.checkpoints("old-1")] == [(100, None), (200, 0.5)]
    assert tables_of(old) == tables_of(registry.path)


def tables_of(path: Path) -> tuple[int, dict[str, list[tuple[object, ...]]]]:
    """The version, and every table's columns."""
    with closing(sqlite3.connect(path)) as db:
        names = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        columns = {name: db.execute(f"PRAGMA table_info({name})").fetchall() for name in names}
        return db.execute("PRAGMA user_version").fetchone()[0], columns


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


def test_a_file_that_another_process_is_switching_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite refuses at once where two would wait for each other, whatever time it was given."""
    refusals = 2

    class Refusing(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            nonlocal refusals
            if "journal_mode" in sql and refusals:
                refusals -= 1
                error = sqlite3.OperationalError("database is locked")
                error.sqlite_errorcode = sqlite3.SQLITE_BUSY_RECOVERY
                raise error
            return super().execute(sql, *parameters)

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Refusing))
    assert RunRegistry(tmp_path / "gemfleet.db").list_runs() == []
    assert refusals == 0


def test_the_figures_of_a_run_are_kept_when_it_ends(tmp_path: Path) -> None:
    """Mean loss, median rates, highest memory: not the last step's, whose batch was a small one."""
    registry = RunRegistry(tmp_path / "gemfleet.db")
    registry.create_run("run-1", "run", "{}")
    values = [(3.0, 100.0, 5), (2.0, 110.0, 7), (float("nan"), 90.0, 6), (9.0, 4.0, 6)]
    names = ("loss", "tokens_per_second", "peak_memory_bytes")
    steps = [{"kind": "step", "step": n, **dict(zip(names, row, strict=True))} for n, row in enumerate(values)]
    registry.add_metrics("run-1", [*steps, {"kind": "eval", "step": 3, "eval_loss": 1.0}])
    assert registry.end_figures("run-1") == {}
    registry.transition("run-1", RunState.SUCCEEDED)
    figures = {"steps": 4, "loss": 14.0 / 3, "tokens_per_second": 95.0, "peak_memory_bytes": 7}
    assert registry.end_figures("run-1") == figures
    assert RegistryReader(registry.path).end_figures("run-1") == figures
    registry.reopen("run-1", "{}")
    assert registry.end_figures("run-1") == {}  # it goes on: the newest step's are shown again
    registry.create_run("run-2", "run", "{}")
    registry.transition("run-2", RunState.FAILED)
    assert registry.end_figures("run-2") == {}


def test_medians_of_a_long_run_are_taken_from_every_nth_step() -> None:
    records = ({"loss": 1.0, "tokens_per_second": float(n)} for n in range(100_000))
    figures = figures_of(records, 100_000)
    assert figures["loss"] == 1.0
    assert abs(figures["tokens_per_second"] - 50_000) < 10

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

import psutil
import pytest
from gemfleet.cluster.driver import DriverLock
from gemfleet.cluster.errors import ClusterError, RegistryDamaged, RunConflict, UnknownRun
from gemfleet.cluster.registry.claims import Claims
from gemfleet.cluster.registry.registry_reader import RegistryReader
from gemfleet.cluster.registry.run_figures import figures_of
from gemfleet.cluster.registry.run_registry import RunRegistry, RunState
from gemfleet.train.step.record import OVER_RUN


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


# What version 4 made beside its schema when the first run of a home queued, and one claim.
CLAIMS_OF_VERSION_4 = """
CREATE TABLE claims (
    run_id TEXT PRIMARY KEY, cluster TEXT NOT NULL, workers INTEGER NOT NULL, cpus REAL NOT NULL, gpus REAL NOT NULL,
    kind TEXT NOT NULL, queued_at REAL NOT NULL, admitted INTEGER NOT NULL
);
INSERT INTO claims VALUES ('demo-1', 'here', 2, 1.0, 0.0, '', 5.0, 1);
"""


@pytest.mark.parametrize("claims", ["", CLAIMS_OF_VERSION_4])
def test_a_home_of_version_4_opens_with_and_without_claims(tmp_path: Path, registry: RunRegistry, claims: str) -> None:
    with closing(sqlite3.connect(registry.path)) as db:
        db.executescript(f"DROP TABLE claims; DROP TABLE tags; DROP TABLE archived; PRAGMA user_version = 4; {claims}")
    migrated = RunRegistry(registry.path)
    assert tables_of(migrated.path) == tables_of(RunRegistry(tmp_path / "new.db").path)
    with migrated.connect() as db:
        kept = [(row["run_id"], row["workers"], row["admitted"]) for row in db.execute("SELECT * FROM claims")]
    assert kept == ([("demo-1", 2, 1)] if claims else [])
    Claims(migrated, "here").queue("demo-1", 1, 1.0, 0.0)


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


def test_a_step_of_the_clock_ends_no_run(registry: RunRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's boot time moves with it, and so does every start time that is told as one of the day."""
    registry.create_run("here", "here", "", driver_pid=os.getpid())
    started = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: started(process) + 3.0)
    assert registry.mark_interrupted() == []


@pytest.mark.parametrize("column", ["ticks", "boot"])
def test_a_process_that_got_the_drivers_id_is_not_the_driver(registry: RunRegistry, column: str) -> None:
    """Started at another time, or after the machine was."""
    registry.create_run("gone", "gone", "", driver_pid=os.getpid())
    with closing(sqlite3.connect(registry.path)) as db:
        db.execute(f"UPDATE drivers SET {column} = {column} || '1'")
        db.commit()
    assert registry.mark_interrupted() == ["gone"]


def test_a_driver_of_an_older_gemfleet_is_known_by_its_start(registry: RunRegistry) -> None:
    registry.create_run("here", "here", "", driver_pid=os.getpid())
    with closing(sqlite3.connect(registry.path)) as db:
        db.execute("DELETE FROM drivers")
        db.commit()
    assert registry.mark_interrupted() == []


def test_whoever_holds_a_runs_lock_is_its_driver(registry: RunRegistry) -> None:
    """Also where its process id means nothing, as in another container; a second driver waits, and is refused."""
    folder = registry.path.parent / "runs" / "here"
    folder.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", "pass"]) as ended:
        registry.create_run("here", "here", "", driver_pid=ended.pid)
    hold = "import sys; from pathlib import Path; from gemfleet.cluster.driver import DriverLock\n"
    hold += "lock = DriverLock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert registry.mark_interrupted() == []
        with pytest.raises(RunConflict, match=f"process {holder.pid} already"):
            DriverLock(folder, wait_seconds=0.3)
        holder.kill()
    DriverLock(folder).close()
    assert registry.mark_interrupted() == ["here"]


def test_no_record_gets_the_number_of_one_that_was_removed(registry: RunRegistry) -> None:
    """A reader that goes on after the last number it saw would never see it."""
    registry.create_run("demo-2", "demo", "")
    registry.add_metrics("demo-2", [{"kind": "step", "step": n} for n in range(5)])
    seen = RegistryReader(registry.path).head()
    registry.transition("demo-2", RunState.FAILED)
    registry.delete_run("demo-2")
    registry.add_metrics("demo-1", [{"kind": "step", "step": 1}])
    registry.add_event("demo-1", "note", "new")
    now = RegistryReader(registry.path).head()
    assert now.metric > seen.metric
    assert now.event > seen.event


@pytest.mark.parametrize("damage", ["cut short", "another file", "a page of noise"])
def test_a_damaged_file_is_one_sentence_with_the_remedy(registry: RunRegistry, damage: str) -> None:
    registry.add_metrics("demo-1", [{"kind": "step", "step": n, "text": "x" * 500} for n in range(100)])
    content = bytearray(checkpointed(registry.path).read_bytes())
    registry.path.write_bytes(damaged(bytes(content), damage))
    with pytest.raises(RegistryDamaged, match="`gemfleet repair`"):
        RunRegistry(registry.path).metrics("demo-1")


def checkpointed(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


def damaged(content: bytes, damage: str) -> bytes:
    if damage == "cut short":
        return content[:20000]
    if damage == "another file":
        return b"not a database, but long enough to be one " * 200
    middle = len(content) // 2 // 4096 * 4096
    return content[:middle] + bytes(range(256)) * 128 + content[middle + 32768 :]


def test_the_figures_of_a_run_are_kept_when_it_ends(tmp_path: Path) -> None:
    """Mean loss, median rates, highest memory: not the last step's, whose batch was a small one."""
    registry = RunRegistry(tmp_path / "gemfleet.db", OVER_RUN)
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
    figures = figures_of(records, 100_000, OVER_RUN)
    assert figures["loss"] == 1.0
    assert abs(figures["tokens_per_second"] - 50_000) < 10


def test_tags_and_archive_are_kept_and_found(registry: RunRegistry) -> None:
    registry.annotate("demo-1", {"team": "search", "purpose": "baseline"})
    registry.annotate("demo-1", {"team": None, "hf_token": "abcdef123", "purpose": "final"})
    tags = {"hf_token": "[hidden]", "purpose": "final"}
    assert registry.get_run("demo-1").tags == tags
    with pytest.raises(RunConflict, match="only a run that has ended"):
        registry.annotate("demo-1", {"lost": "yes"}, archived=True)
    with pytest.raises(RunConflict, match="more than 32 tags"):
        registry.annotate("demo-1", {f"key-{number}": "x" for number in range(32)})
    with pytest.raises(ClusterError, match="no key of a tag"):
        registry.annotate("demo-1", {"a b": "x"})
    assert registry.get_run("demo-1").tags == tags  # all of a change or nothing
    registry.create_run("demo-2", "demo", "{}")
    registry.transition("demo-1", RunState.FAILED)
    registry.annotate("demo-1", archived=True)
    ids = [[run.id for run in registry.list_runs(archived=archived)] for archived in (None, True, False)]
    assert ids == [["demo-2", "demo-1"], ["demo-1"], ["demo-2"]]
    wanted: list[dict[str, str | None]] = [{"purpose": "final"}, {"purpose": None}, {"purpose": "x"}, {"team": None}]
    assert [len(registry.list_runs(tags=one)) for one in wanted] == [1, 1, 0, 0]
    registry.reopen("demo-1", "{}")
    assert not registry.get_run("demo-1").archived
    registry.transition("demo-1", RunState.FAILED)
    registry.delete_run("demo-1")
    registry.create_run("demo-1", "demo", "{}")
    assert registry.get_run("demo-1").tags == {}


def test_a_file_without_tags_that_nobody_can_migrate_is_still_read(registry: RunRegistry) -> None:
    """As on a full disk, where an older file cannot be brought up to this version."""
    with closing(sqlite3.connect(registry.path)) as db:
        db.executescript("DROP TABLE tags; DROP TABLE archived; PRAGMA user_version = 5;")
    reader = RegistryReader(registry.path)
    assert [run.id for run in reader.list_runs()] == [run.id for run in reader.list_runs(archived=False)] == ["demo-1"]
    assert reader.list_runs(archived=True) == reader.list_runs(tags={"team": None}) == []
    assert reader.get_run("demo-1").tags == {}
    assert [run.id for run in reader.runs_since(0.0, 5)] == ["demo-1"]
    RunRegistry(registry.path).annotate("demo-1", {"team": "search"})
    assert reader.get_run("demo-1").tags == {"team": "search"}

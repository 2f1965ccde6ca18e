"""A registry that is damaged or lost comes back from the runs' folders, losing metrics at most."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from gemfleet.cluster.checkpoint_store.commit import CheckpointDisk
from gemfleet.cluster.driver import DriverLock
from gemfleet.cluster.errors import RunConflict
from gemfleet.cluster.registry.registry_reader import RegistryReader
from gemfleet.cluster.registry.run_registry import RunRegistry, RunState
from gemfleet.launcher.cli import app, main
from gemfleet.launcher.runs.folder import refuse_leftovers
from gemfleet.launcher.runs.repair import repair
from support.fault_table import tell
from support.servers.object_store import commit
from typer.testing import CliRunner

CONFIG = "name: alpha\ntrain: {model: demo, data: {train: demo}}\n"
DAMAGE = ["deleted", "emptied", "cut short", "another file", "a page of noise", "no version"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that succeeded with two checkpoints, one that failed, and one that trains in this very process."""
    monkeypatch.setenv("GEMFLEET_HOME", str(tmp_path))
    registry = RunRegistry(tmp_path / "gemfleet.db")
    for run_id, state in (("done-1", "succeeded"), ("bad-1", "failed"), ("live-1", "training")):
        registry.create_run(run_id, "alpha", CONFIG, os.getpid())
        folder = tmp_path / "runs" / run_id
        disk = CheckpointDisk(folder / "checkpoints")
        disk.begin_attempt()
        (folder / "config.resolved.yaml").write_text(CONFIG)
        registry.transition(run_id, RunState.TRAINING)
        registry.add_metrics(run_id, [{"kind": "step", "step": n, "text": "x" * 500} for n in range(60)])
        for step in (4, 8) if run_id == "done-1" else ():
            commit(disk, step, 1)
            registry.add_checkpoint(run_id, step, str(disk.shelf.at_hand(step)), 7000, 1)
        if state != "training":
            registry.transition(run_id, RunState(state), "out of luck" if state == "failed" else "")
    return tmp_path


def damage(home: Path, how: str) -> None:
    path = home / "gemfleet.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(path.read_bytes())
    if how == "no version":
        content[60:64] = bytes(4)
        path.write_bytes(bytes(content))
        return
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 32768] = os.urandom(32768)
    damaged = {"emptied": b"", "cut short": path.read_bytes()[:20000], "another file": b"no database" * 999}
    path.write_bytes(damaged.get(how, bytes(content)))
    if how == "deleted":
        path.unlink()


def output_of(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize("how", DAMAGE)
def test_all_runs_come_back_with_state_reason_configuration_and_checkpoints(home: Path, how: str) -> None:
    before = RunRegistry(home / "gemfleet.db")
    rows = {run.id: run for run in before.list_runs()}
    reader = RegistryReader(home / "gemfleet.db")  # as of an API, which goes on
    seen = reader.head()
    lock = DriverLock(home / "runs" / "live-1")  # it goes on through all this
    damage(home, how)
    done = repair(home)
    registry = RunRegistry(home / "gemfleet.db")
    assert {run.id for run in registry.list_runs()} == set(rows)
    for run in registry.list_runs():
        old = rows[run.id]
        assert (run.name, run.state, run.reason, run.config) == (old.name, old.state, old.reason, old.config)
        assert run.created_at == old.created_at
    assert [row["step"] for row in registry.checkpoints("done-1")] == [4, 8]
    assert registry.mark_interrupted() == []
    assert registry.get_run("live-1").driver_pid == os.getpid()
    lock.close()
    registry.add_metrics("live-1", [{"kind": "step", "step": 99}])
    registry.add_event("live-1", "note", "it goes on")
    now = reader.head()
    assert now.metric > seen.metric  # no number twice
    assert now.event > seen.event
    assert (done.aside is None) == (how == "deleted")
    assert sorted(path.name for path in home.glob(".rebuilt*")) == []
    tell(f"registry {how}, `gemfleet repair`", "every run back", "-", None)


@pytest.mark.parametrize("how", ["cut short", "another file", "a page of noise", "no version"])
def test_every_command_says_one_sentence_and_the_remedy(
    home: Path, how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(home, how)
    said = []
    commands = ("runs", "show done-1", "events done-1", "stop live-1", "resume bad-1 --dry-run", "prune --keep 9")
    for command in commands:
        monkeypatch.setattr("sys.argv", ["gemfleet", *command.split()])
        try:
            main()
        except SystemExit as ended:
            said.append((ended.code, capsys.readouterr().err))
    assert {code for code, _ in said} <= {0, 2}  # a page that a command does not need may be damaged
    errors = [text for code, text in said if code == 2]
    assert errors
    for text in errors:
        assert text.startswith("error: the registry ")
        assert text.endswith("`gemfleet repair` rebuilds it\n")
        assert text.count("\n") == 1
    assert "runs could be read" in output_of("repair")
    assert output_of("checkpoints", "done-1", "verify").count("whole") == 2


def test_a_lost_one_is_rebuilt_by_the_next_command(home: Path, tmp_path: Path) -> None:
    damage(home, "deleted")
    assert "the registry was lost; 3 runs are back" in output_of("checkpoints", "done-1", "verify")
    output_of("checkpoints", "done-1", "pull", "latest", str(tmp_path / "copy"))
    assert json.loads(output_of("show", "live-1", "--json"))["state"] == "interrupted"  # no driver holds its lock


def test_a_row_that_is_missing_is_added_and_a_whole_registry_is_left_alone(home: Path) -> None:
    RunRegistry(home / "gemfleet.db").annotate("done-1", {"team": "search", "why": "x"}, archived=True)
    with closing(sqlite3.connect(home / "gemfleet.db")) as db:
        db.executescript("DELETE FROM runs WHERE id = 'done-1'; DELETE FROM tags WHERE key = 'why'")
    (home / "runs" / "lost+found").mkdir()
    assert repair(home).rebuilt == ("done-1",)
    back = RunRegistry(home / "gemfleet.db").get_run("done-1")
    assert (back.tags, back.archived) == ({"team": "search", "why": "x"}, True)  # by the run's folder
    assert repair(home).rebuilt == ()
    assert len(RunRegistry(home / "gemfleet.db").metrics("bad-1")) == 60


def test_a_folder_of_before_states_were_kept_in_it_tells_by_what_was_published(home: Path) -> None:
    damage(home, "deleted")
    for run_id in ("done-1", "bad-1", "live-1"):
        (home / "runs" / run_id / "state.json").unlink()
    early = [{"step": 4, "eval_loss": 2.0}, {"step": 4, "stopped_early": "stopped early at step 4 of 8"}]
    for run_id, history in (("done-1", early), ("live-1", early[:1])):
        (home / "runs" / run_id / "output").mkdir()
        state = {"global_step": 4, "max_steps": 8, "log_history": history}
        (home / "runs" / run_id / "output" / "trainer_state.json").write_text(json.dumps(state))
    repair(home)
    states = {run.id: run.state for run in RunRegistry(home / "gemfleet.db").list_runs()}
    assert states == {"done-1": "succeeded", "bad-1": "interrupted", "live-1": "stopped"}
    assert [run.name for run in RunRegistry(home / "gemfleet.db").list_runs()] == ["alpha"] * 3


def test_a_new_run_never_takes_up_the_files_of_an_older_one(home: Path) -> None:
    """Whose row is gone: it would begin at step 8, on other data."""
    damage(home, "deleted")
    with pytest.raises(RunConflict, match="`gemfleet repair`"):
        refuse_leftovers(home / "runs" / "done-1")
    refuse_leftovers(home / "runs" / "new-1")

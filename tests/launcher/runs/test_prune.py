"""`gemfleet prune`: frees the disk also when it is full, and passes over what is odd."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from gemfleet.cluster.checkpoint_store.shelf import Shelf
from gemfleet.cluster.driver import DriverLock
from gemfleet.cluster.errors import DiskFull
from gemfleet.cluster.registry.registry_reader import RegistryReader
from gemfleet.cluster.registry.run_registry import RunRegistry, RunState
from gemfleet.launcher.cli import app
from support.fault_table import tell
from typer.testing import CliRunner

RUNS = ("one-1", "odd-1", "two-1")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GEMFLEET_HOME", str(tmp_path / "home"))
    fill(tmp_path / "home")
    return tmp_path / "home"


def fill(home: Path) -> RunRegistry:
    """Three runs that have ended, each submitted over the API."""
    registry = RunRegistry(home / "gemfleet.db")
    for run_id in RUNS:
        for folder in (home / "runs" / run_id / "logs", home / "submitted" / run_id):
            folder.mkdir(parents=True)
            (folder / "driver.log").write_text("a line\n")
        (home / "runs" / run_id / "config.resolved.yaml").write_text("train: {model: demo}\n")
        registry.create_run(run_id, run_id, "{}")
        registry.transition(run_id, RunState.FAILED)
    return registry


def prune(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["prune", "--keep", "0", *arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize("odd", ["no configuration", "no YAML", "a list", "no folder", "a file", "a link"])
def test_an_odd_run_goes_as_the_others_do(home: Path, tmp_path: Path, odd: str) -> None:
    folder, config = home / "runs" / "odd-1", home / "runs" / "odd-1" / "config.resolved.yaml"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").touch()
    if odd == "no configuration":
        config.unlink()
    elif odd == "no YAML":
        config.write_text("train: [")
    elif odd == "a list":
        config.write_text("cluster: [1, 2]\n")
    else:
        folder.rename(tmp_path / "away")
        if odd == "a file":
            folder.write_text("?")
        if odd == "a link":
            folder.symlink_to(tmp_path / "elsewhere")
    prune("--yes")
    assert RunRegistry(home / "gemfleet.db").list_runs() == []
    assert list((home / "runs").iterdir()) == list((home / "submitted").iterdir()) == []
    assert (tmp_path / "elsewhere" / "kept").exists()


def test_one_that_cannot_be_removed_is_named_and_the_others_go(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "runs" / "odd-1" / "config.resolved.yaml").write_text("cluster: {storage: 's3://no-such/bucket'}\n")

    def unreachable(shelf: Shelf) -> list[int]:
        raise OSError("no route to the store")

    monkeypatch.setattr("gemfleet.cluster.checkpoint_store.object_shelf.ObjectShelf.steps", unreachable)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    assert "left alone: odd-1: no route to the store" in prune("--yes", code=1)
    assert [run.id for run in RunRegistry(home / "gemfleet.db").list_runs()] == ["odd-1"]
    assert [path.name for path in (home / "runs").iterdir()] == ["odd-1"]


def test_a_run_that_is_launched_again_just_now_is_left_alone(home: Path) -> None:
    lock = DriverLock(home / "runs" / "odd-1")
    assert "left alone: odd-1" in prune("--yes", code=1)
    lock.close()
    assert [path.name for path in (home / "runs").iterdir()] == ["odd-1"]


def test_what_was_cut_off_and_what_became_no_run_is_swept(home: Path) -> None:
    (home / "runs" / ".removed-old-1-00" / "logs").mkdir(parents=True)
    for name in ("never-1", "just-now-1"):
        (home / "submitted" / name).mkdir()
    os.utime(home / "submitted" / "never-1", (1.0, 1.0))
    prune("--older-than", "1", "--yes")
    assert sorted(path.name for path in (home / "runs").iterdir()) == sorted(RUNS)
    assert sorted(path.name for path in (home / "submitted").iterdir()) == sorted([*RUNS, "just-now-1"])


@pytest.fixture
def small_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home on a disk of 24 MiB of its own."""
    home = tmp_path / "small"
    home.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(home)], check=False).returncode:
        pytest.skip("needs root, to mount a small disk")
    monkeypatch.setenv("GEMFLEET_HOME", str(home))
    yield home
    subprocess.run(["umount", str(home)], check=True)


@pytest.mark.parametrize("reserve", [True, False])
def test_a_full_disk_can_be_read_and_pruned(small_home: Path, reserve: bool) -> None:
    """Also where nothing was reserved, as in a home of an older gemfleet."""
    registry = fill(small_home)
    if not reserve:
        (small_home / "gemfleet.db-reserve").unlink()
    with suppress(OSError), (small_home / "runs" / "one-1" / "filler").open("wb", buffering=0) as file:
        while file.write(bytes(4096)) == 4096:
            pass
    if not reserve:
        with pytest.raises(DiskFull, match="prune"):
            registry.add_event("one-1", "note", "a line")
    reader = RegistryReader(small_home / "gemfleet.db")
    assert len(reader.list_runs(10)) == 3  # keeps no writer out: the removals below would wait for it
    listed = json.loads(CliRunner().invoke(app, ["runs", "--json"], catch_exceptions=False).output)
    assert [run["id"] for run in listed] == ["two-1", "odd-1", "one-1"]
    assert "removed" in prune("--yes")
    assert RunRegistry(small_home / "gemfleet.db").list_runs() == []
    assert list((small_home / "runs").iterdir()) == []
    tell(f"disk full on the head, {'with' if reserve else 'without'} the reserve: `gemfleet prune`", "freed", "-", None)

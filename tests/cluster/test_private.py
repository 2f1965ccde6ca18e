"""The home is its user's alone, under any umask."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from gemfleet.cluster.checkpoint_store.actor import CheckpointStore
from gemfleet.cluster.private import private_folder
from gemfleet.cluster.registry.run_recorder import RunRecorder
from gemfleet.cluster.registry.run_registry import RunRegistry
from gemfleet.cluster.token_file import load_token
from gemfleet.train.step.record import points

WHO = {"node": "n", "address": "a", "pid": 1}


@pytest.fixture(params=[0o000, 0o022, 0o777])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def open_paths(folder: Path) -> list[str]:
    """What others may read, or not even its owner may."""
    paths = [folder, *folder.rglob("*")]
    wanted = {True: 0o700, False: 0o600}
    return [f"{path} {path.stat().st_mode:o}" for path in paths if path.stat().st_mode & 0o777 != wanted[path.is_dir()]]


def test_registry_logs_checkpoints_and_tokens_are_closed(tmp_path: Path, umask: int) -> None:
    home = tmp_path / "home"
    registry = RunRegistry(home / "gemfleet.db")
    registry.create_run("r-1", "r", "x: 1\n")
    recorder = RunRecorder(str(home), "r-1", points)
    recorder.push(0, [{"kind": "log", "line": "hello"}, {"kind": "step", "step": 1, "loss": 1.0}], WHO)
    recorder.save_stacks(0, 1, "step", 9.0, "stack")
    store = CheckpointStore(str(home / "runs" / "r-1"))
    store.begin(1, store.begin_attempt(), "a.bin")
    load_token(home / "api" / "read.token")
    assert open_paths(home) == []


def test_a_home_that_was_open_is_closed_and_others_folders_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, shared, own = tmp_path / "home", tmp_path / "shared", tmp_path / "own"
    for folder, mode in ((home, 0o755), (shared, 0o1777), (own, 0o755)):
        folder.mkdir()
        folder.chmod(mode)
    monkeypatch.setenv("HOME", str(own))
    (home / "gemfleet.db").touch(0o644)
    for folder in (home, shared, own):
        RunRegistry(folder / "gemfleet.db")
        assert (folder / "gemfleet.db").stat().st_mode & 0o777 == 0o600
    assert [folder.stat().st_mode & 0o1777 for folder in (home, shared, own)] == [0o700, 0o1777, 0o755]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder to another user")
def test_another_users_folder_stays_as_it_is(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    tmp_path.chmod(0o755)
    private_folder(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_every_command_keeps_the_home_closed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    environment = {**os.environ, "GEMFLEET_HOME": str(home)}
    command = [sys.executable, "-m", "gemfleet.launcher.cli", "runs"]
    subprocess.run(command, env=environment, check=True, umask=0, timeout=60, capture_output=True)
    assert (home / "gemfleet.db").is_file()
    assert open_paths(home) == []


def test_what_is_asked_for_elsewhere_has_the_users_own_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    script = "\n".join(
        [
            "import os, sys; from pathlib import Path; os.umask(0o027)",
            "from gemfleet.cluster.private import as_the_user_has_it, keep_private",
            "keep_private(); keep_private(); Path(sys.argv[1], 'kept').touch()",
            "with as_the_user_has_it(): Path(sys.argv[1], 'asked').touch()",
        ]
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=60)
    os.umask(before)
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in ("kept", "asked")}
    assert modes == {"kept": 0o600, "asked": 0o640}


def test_the_first_use_by_many_gives_one_token_to_all(tmp_path: Path) -> None:
    for number in range(30):
        path, told, ready = tmp_path / str(number) / "token", list[str](), threading.Barrier(12)

        def use(path: Path = path, told: list[str] = told, ready: threading.Barrier = ready) -> None:
            ready.wait()
            told.append(load_token(path))

        users = [threading.Thread(target=use) for _ in range(12)]
        for user in users:
            user.start()
        for user in users:
            user.join()
        assert (len(told), len(set(told))) == (12, 1)
        assert [entry.name for entry in path.parent.iterdir()] == ["token"]

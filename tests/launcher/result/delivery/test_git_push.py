"""Pushes to real bare repositories: whole or not at all, and an interrupted one is completed by the next."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from gemfleet.launcher.result.delivery.errors import DeliveryError
from gemfleet.launcher.result.delivery.git_push import push_folder
from gemfleet.launcher.sources.address import ROOTS_VARIABLE, GitAddress, check_address
from gemfleet.launcher.sources.checkout import fetch_repository
from support.sources_on_disk import bare_repository, git, needs_git

pytestmark = needs_git
WEIGHTS = bytes(range(256)) * 2000


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "output"
    (folder / "checkpoint-3").mkdir(parents=True)
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
    for name in ("adapter_model.safetensors", "checkpoint-3/optimizer.safetensors"):
        (folder / name).write_bytes(WEIGHTS)
    (folder / "README.md").write_text("# 어댑터\n", encoding="utf-8")
    return folder


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GitAddress:
    monkeypatch.setenv(ROOTS_VARIABLE, str(tmp_path))
    return check_address(bare_repository(tmp_path / "remote.git"), "test-2")


def bare(address: GitAddress) -> Path:
    return Path(address.url.removeprefix("file://"))


def hook(address: GitAddress, script: str) -> Path:
    path = bare(address) / "hooks" / "pre-receive"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def branches(address: GitAddress) -> str:
    return git(bare(address), "branch", "--list")


def arrived(address: GitAddress, output: Path, cache: Path) -> bool:
    """Whether a fresh clone holds exactly the folder."""
    return content(fetch_repository(address, cache)) == content(output)


def test_a_push_arrives_whole_with_its_large_files_in_lfs(output: Path, remote: GitAddress, tmp_path: Path) -> None:
    before = content(output)
    commit = push_folder(output, remote, "first")
    assert git(bare(remote), "rev-parse", "test-2").strip() == commit
    assert "git-lfs" in git(bare(remote), "cat-file", "blob", "test-2:adapter_model.safetensors")
    assert arrived(remote, output, tmp_path / "clones")
    assert content(output) == before
    assert [p.name for p in output.parent.iterdir()] == ["output"]


def test_a_second_push_goes_on_top_and_an_equal_one_changes_nothing(output: Path, remote: GitAddress) -> None:
    first = push_folder(output, remote, "first")
    assert push_folder(output, remote, "again") == first
    (output / "README.md").write_text("changed")
    (output / "checkpoint-3" / "optimizer.safetensors").unlink()
    second = push_folder(output, remote, "second")
    assert git(bare(remote), "rev-list", "test-2").split() == [second, first]
    assert "optimizer" not in git(bare(remote), "ls-tree", "-r", "--name-only", "test-2")


def test_a_server_that_refuses_is_tried_again_and_reported(output: Path, remote: GitAddress, tmp_path: Path) -> None:
    script = hook(remote, f"echo tried >> {tmp_path}/attempts; echo 'no room today' >&2; exit 1")
    waits: list[float] = []
    before = content(output)
    with pytest.raises(DeliveryError, match=r"failed 3 times \(.*no room today"):
        push_folder(output, remote, "first", sleep=waits.append)
    assert (tmp_path / "attempts").read_text().split() == ["tried"] * 3
    assert waits == [2.0, 8.0]
    assert branches(remote) == ""
    assert content(output) == before
    assert [p.name for p in output.parent.iterdir()] == ["output"]
    script.unlink()
    push_folder(output, remote, "first")
    assert arrived(remote, output, tmp_path / "clones")


def test_a_server_that_recovers_gets_the_result_by_itself(output: Path, remote: GitAddress, tmp_path: Path) -> None:
    hook(remote, f"test -e {tmp_path}/mark && exit 0; touch {tmp_path}/mark; exit 1")
    push_folder(output, remote, "first", sleep=lambda seconds: None)
    assert arrived(remote, output, tmp_path / "clones")


def test_a_killed_push_is_completed_by_the_next(output: Path, remote: GitAddress, tmp_path: Path) -> None:
    script = hook(remote, f"touch {tmp_path}/reached; sleep 60")
    program = (
        "import sys; from pathlib import Path; from gemfleet.launcher.result.delivery.git_push import push_folder; "
        "from gemfleet.launcher.sources.address import check_address; "
        "push_folder(Path(sys.argv[1]), check_address(sys.argv[2], 'test-2'), 'killed')"
    )
    command = [sys.executable, "-c", program, str(output), remote.url]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "reached").exists():
            assert time.monotonic() < deadline, "the server was not reached"
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    end_sleeping_hook(script)
    assert branches(remote) == ""
    script.unlink()
    push_folder(output, remote, "first")
    assert arrived(remote, output, tmp_path / "clones")


def end_sleeping_hook(script: Path) -> None:
    """End the process groups that still run this very hook, which outlives the killed client."""
    for process in Path("/proc").iterdir():
        try:
            is_hook = process.name.isdigit() and script.name.encode() in (process / "cmdline").read_bytes()
            if is_hook and Path(os.readlink(process / "cwd")) == script.parent.parent:
                os.killpg(os.getpgid(int(process.name)), signal.SIGKILL)
        except (OSError, ValueError):
            continue


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[str], None]]:
    """A disk of that size at `folder`, which is made; yields what gives it another size. Skips where it may not."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs leave to mount a small disk (root)")

    def resize(other: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={other}", str(folder)], check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_at_the_server_leaves_the_branch_and_the_result_alone(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ROOTS_VARIABLE, str(tmp_path))
    with small_disk(tmp_path / "disk", "600k") as resize:
        remote = check_address(bare_repository(tmp_path / "disk" / "remote.git"), "test-2")
        (output / "more.safetensors").write_bytes(os.urandom(700_000))
        before = content(output)
        with pytest.raises(DeliveryError, match="failed 3 times"):
            push_folder(output, remote, "first", sleep=lambda seconds: None)
        assert branches(remote) == ""
        assert content(output) == before
        resize("20m")
        push_folder(output, remote, "first")
        assert arrived(remote, output, tmp_path / "clones")


def test_a_full_disk_here_leaves_the_branch_and_the_result_alone(
    output: Path, remote: GitAddress, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "1500k") as resize:
        here = tmp_path / "disk" / "output"
        shutil.copytree(output, here)
        (here / "more.safetensors").write_bytes(os.urandom(400_000))
        before = content(here)
        with pytest.raises(DeliveryError, match="failed 3 times"):
            push_folder(here, remote, "first", sleep=lambda seconds: None)
        assert branches(remote) == ""
        assert content(here) == before
        assert [path.name for path in here.parent.iterdir()] == ["output"]
        resize("20m")
        push_folder(here, remote, "first")
        assert arrived(remote, here, tmp_path / "clones")

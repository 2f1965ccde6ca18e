"""A temporary folder goes with its process, however that ends."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from gemfleet.cluster.scratch import scratch_folder

CHILD = """
import sys
from gemfleet.cluster.scratch import scratch_folder
with scratch_folder("gemfleet-test-") as folder:
    (folder / "large.bin").write_bytes(bytes(1000))
    print(folder.parent, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_is_swept_at_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "gemfleet-test-of-another-program").mkdir()
    (tmp_path / "gemfleet-test-link").symlink_to(tmp_path)
    with (
        subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as killed,
        subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as lives,
    ):
        assert killed.stdout is not None
        assert lives.stdout is not None
        left, used = (Path(process.stdout.readline().strip()) for process in (killed, lives) if process.stdout)
        killed.kill()
        killed.wait()
        with scratch_folder("gemfleet-test-") as mine:
            assert list(mine.iterdir()) == []
            assert not left.exists()
            assert (used / "work" / "large.bin").exists()
        lives.communicate("")
        assert not used.exists()
    kept = ["gemfleet-test-link", "gemfleet-test-of-another-program"]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept


def user_of_a_folder() -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

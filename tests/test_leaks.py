"""The checks of `conftest.py` themselves: a test that leaves something behind fails, and only that one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.places import REPOSITORY

pytestmark = pytest.mark.slow

LEAKING = """
import os
import torch.distributed

def test_leaves_a_process_group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)

def test_leaves_a_variable():
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"

def test_changes_a_variable():
    os.environ["OMP_NUM_THREADS"] = "64"

def test_cleans_up(monkeypatch):
    assert not torch.distributed.is_initialized()
    assert "GLOO_SOCKET_IFNAME" not in os.environ
    assert os.environ["OMP_NUM_THREADS"] != "64"
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")

def test_has_its_own_home(gemfleet_home):
    assert os.environ["GEMFLEET_HOME"] == str(gemfleet_home)
    assert (gemfleet_home / "cache" / "models").is_dir()
"""


def test_leaks_are_found_and_mended(tmp_path: Path) -> None:
    (tmp_path / "test_leaking.py").write_text(LEAKING)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    options = ["-p", "tests.conftest", "-p", "no:cacheprovider", "-rA"]
    command = [sys.executable, "-m", "pytest", *options, "test_leaking.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert "5 passed, 3 errors" in done.stdout, done.stdout + done.stderr
    assert "the test left a process group" in done.stdout
    assert "the test left GLOO_SOCKET_IFNAME" in done.stdout
    assert "the test left OMP_NUM_THREADS" in done.stdout

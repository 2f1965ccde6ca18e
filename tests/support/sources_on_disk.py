"""Real bare repositories with LFS on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

needs_git = pytest.mark.skipif(
    shutil.which("git") is None or shutil.which("git-lfs") is None, reason="needs git and git-lfs (Debian packages)"
)
QUIET = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "a person",
    "GIT_AUTHOR_EMAIL": "person@example.org",
    "GIT_COMMITTER_NAME": "a person",
    "GIT_COMMITTER_EMAIL": "person@example.org",
}


def git(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, **QUIET}
    done = subprocess.run(["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def bare_repository(folder: Path) -> str:
    """An empty bare repository; returns its address."""
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet", "--bare", "--initial-branch=main")
    return f"file://{folder}"


def commit_folder(files: Path, address: str, lfs: tuple[str, ...] = (), branch: str = "main") -> None:
    """Push a folder's content as one commit, with these patterns in LFS."""
    git(files, "init", "--quiet", "--initial-branch", branch)
    git(files, "lfs", "install", "--local")
    for pattern in lfs:
        git(files, "lfs", "track", pattern)
    git(files, "add", "--all")
    git(files, "commit", "--quiet", "--message", "files")
    git(files, "push", "--quiet", address, branch)
    shutil.rmtree(files / ".git")

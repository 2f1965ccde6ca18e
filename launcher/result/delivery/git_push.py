"""Pushes a folder as one commit to a branch, with its large files in LFS.

LFS objects go first. The branch moves last and at once, so a reader of the branch sees the old state or the new one.
Nothing is kept between two tries, so an interrupted one leaves nothing to repair.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from gemfleet.launcher.sources.address import GitAddress
from gemfleet.launcher.sources.git_command import Git, GitError, Progress, git_lines, need_git

from .retry import try_again

PUSH_SECONDS = 4 * 3600.0
AUTHOR = (("user.name", "gemfleet"), ("user.email", "gemfleet@localhost"))


def push_folder(
    folder: Path,
    address: GitAddress,
    message: str,
    progress: Progress | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Push `folder` to the address's branch, or to `main` if it names none. Returns the commit.

    Tries three times. Raises DeliveryError with the last reason, and UserError if git is not installed.
    """
    need_git()

    def push() -> str:
        with tempfile.TemporaryDirectory(prefix=".push-", dir=folder.parent) as work:
            return _push(Git(folder, address, Path(work) / "git"), message, progress or _silent)

    return try_again(push, (GitError, OSError), f"the push to {address.url}", sleep)


def _push(git: Git, message: str, progress: Progress) -> str:
    branch = git.address.branch or "main"
    git.run("init", "--quiet", f"--initial-branch={branch}")
    git.run("remote", "add", "origin", git.address.url)
    for name, value in (*AUTHOR, ("lfs.locksverify", "false")):
        git.run("config", "--local", name, value)
    git.run("lfs", "install", "--local", "--skip-repo")
    known = git_lines(git.run("ls-remote", "--", git.address.url, f"refs/heads/{branch}"))
    if known:
        git.run("fetch", "--depth=1", "--no-tags", "--quiet", "origin", f"refs/heads/{branch}", seconds=PUSH_SECONDS)
        git.run("update-ref", f"refs/heads/{branch}", "FETCH_HEAD")
    git.run("add", "--all", "--force", seconds=PUSH_SECONDS)
    if not known or git.run("diff", "--cached", "--name-only", "HEAD"):
        git.run("commit", "--quiet", "--no-verify", "--message", message)
        git.run("lfs", "push", "origin", branch, seconds=PUSH_SECONDS, progress=progress)
        git.run("push", "--atomic", "--progress", "origin", branch, seconds=PUSH_SECONDS, progress=progress)
    return git.run("rev-parse", "HEAD").strip()


def _silent(done: int, total: int, what: str) -> None:
    """Nobody watches."""

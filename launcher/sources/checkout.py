"""Fetches one commit of a repository as a plain folder, with its LFS files. Checks the tree before it writes files."""

from __future__ import annotations

import fcntl
import hashlib
import posixpath
import re
import shutil
import tempfile
from pathlib import Path

from gemfleet.train.errors import UserError

from .address import GitAddress
from .git_command import Git, GitError, Progress, git_lines, need_git
from .pickles import PICKLES

FETCH_SECONDS = 4 * 3600.0
POINTER = b"version https://git-lfs.github.com/spec/"


def fetch_repository(address: GitAddress, cache: Path, progress: Progress | None = None) -> Path:
    """The folder of the branch's newest commit below `cache`. Fetches it once. Raises UserError where that fails."""
    need_git()
    cache.mkdir(parents=True, exist_ok=True)
    try:
        commit = newest_commit(Git(cache, address))
        key = hashlib.sha256(address.url.encode()).hexdigest()[:16]
        folder = cache / key / commit
        folder.parent.mkdir(exist_ok=True)
        with (folder.parent / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():
                _check_out(address, commit, folder, progress)
    except GitError as error:
        raise UserError(
            f"the repository {address.url} cannot be fetched ({error}); check the address, the branch and the access "
            "that the SSH agent or GEMFLEET_GIT_TOKEN gives"
        ) from None
    return folder


def newest_commit(git: Git) -> str:
    """The newest commit of the address's branch, or of the default one. Raises UserError for a missing branch."""
    name = f"refs/heads/{git.address.branch}" if git.address.branch else "HEAD"
    found = git_lines(git.run("ls-remote", "--", git.address.url, name))
    match = re.match(r"([0-9a-f]{40,64})\t", found[0]) if found else None
    if match is None:
        raise UserError(
            f"the repository {git.address.url} has no branch {git.address.branch or 'at all'}; name one that it has"
        )
    return match[1]


def _check_out(address: GitAddress, commit: str, folder: Path, progress: Progress | None) -> None:
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as work:
        git = Git(Path(work) / "files", address)
        git.folder.mkdir()
        git.run("init", "--quiet")
        git.run("remote", "add", "origin", address.url)
        branch = f"refs/heads/{address.branch}" if address.branch else "HEAD"
        fetch = ["fetch", "--depth=1", "--no-tags", "--progress", "origin", branch]
        git.run(*fetch, seconds=FETCH_SECONDS, progress=progress or _silent)
        check_tree(git, "FETCH_HEAD")
        git.run("checkout", "--quiet", "--detach", "FETCH_HEAD", seconds=FETCH_SECONDS)
        git.run("lfs", "install", "--local", "--skip-repo")
        wanted = ["lfs", "pull", "--exclude", ",".join(f"*{suffix}" for suffix in PICKLES)]
        git.run(*wanted, seconds=FETCH_SECONDS, progress=progress or _silent)
        shutil.rmtree(git.folder / ".git")
        _finish(git.folder)
        git.folder.rename(folder)


def check_tree(git: Git, commit: str) -> None:
    """Raise UserError for a tree with links that lead out, with submodules, or with an `.lfsconfig`."""
    url = git.address.url
    for entry in git_lines(git.run("ls-tree", "-r", "-z", "--full-tree", commit), "\0"):
        facts, _, path = entry.partition("\t")
        mode, _, blob = facts.split(" ", 2)
        if mode == "160000":
            raise UserError(f"the repository {url} has the submodule {path!r}; give one without submodules")
        if path == ".lfsconfig":
            raise UserError(f"the repository {url} has a .lfsconfig, which could lead elsewhere; remove it")
        if mode == "120000":
            target = git.run("cat-file", "blob", blob)
            where = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
            if target.startswith("/") or where == ".." or where.startswith("../"):
                raise UserError(f"the repository {url} has the link {path!r} to {target!r}, outside of it; remove it")


def _finish(folder: Path) -> None:
    """Remove pickles, which nothing here reads. Raise UserError if an LFS file did not come."""
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        if path.suffix.lower() in PICKLES:
            path.unlink()
        elif path.stat().st_size < 1024 and path.read_bytes().startswith(POINTER):
            raise UserError(f"the LFS file {path.name} did not come with the repository; push it there with git lfs")


def _silent(done: int, total: int, what: str) -> None:
    """Nobody watches."""

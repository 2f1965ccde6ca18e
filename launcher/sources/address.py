"""Checks addresses of git repositories: takes three forms, and refuses every other one before git sees it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from gemfleet.train.errors import UserError

BRANCH_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]*([./][A-Za-z0-9_-]+)*$"
PREFIX = "git+"
ROOTS_VARIABLE = "GEMFLEET_SOURCE_ROOTS"
_USER, _HOST = r"[A-Za-z0-9_][A-Za-z0-9._-]*", r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?"
_PATH = r"[A-Za-z0-9._~/+%@=,-]+"
_FORMS = {
    "https": re.compile(rf"https://{_HOST}(?::[0-9]{{1,5}})?/{_PATH}"),
    "ssh": re.compile(rf"ssh://(?:{_USER}@)?{_HOST}(?::[0-9]{{1,5}})?/{_PATH}|{_USER}@{_HOST}:(?![-:]){_PATH}"),
    "file": re.compile(rf"file:///{_PATH}"),
}
TAKEN = "give https://host/path.git, ssh://user@host/path.git or user@host:path.git"


@dataclass(frozen=True)
class GitAddress:
    """A checked address. transport: `https`, `ssh` or `file`; branch: None: the repository's default"""

    url: str
    transport: str
    branch: str | None = None


def is_git_source(source: str) -> bool:
    """Whether a model or data source names a repository: `git+ADDRESS` or `git+ADDRESS#BRANCH`."""
    return source.startswith(PREFIX)


def parse_source(source: str) -> GitAddress:
    """The checked address of `git+ADDRESS#BRANCH`. Raises UserError."""
    url, _, branch = source.removeprefix(PREFIX).partition("#")
    return check_address(url, branch or None)


def check_address(url: str, branch: str | None = None) -> GitAddress:
    """The checked address. Raises UserError for unknown transports, and for what git or ssh could read as an option."""
    if branch is not None and not re.fullmatch(BRANCH_PATTERN, branch):
        raise UserError(
            f"the branch {branch!r} is not a name that gemfleet takes; give letters, digits, `.`, `_`, `-`, `/`"
        )
    if re.match(r"[a-z]+://[^/]*:[^/]*@", url):
        raise UserError(
            "the address of a repository holds a password; take it out, and set GEMFLEET_GIT_HOST, GEMFLEET_GIT_USER "
            "and GEMFLEET_GIT_TOKEN in the environment"
        )
    transport = next((name for name, form in _FORMS.items() if form.fullmatch(url)), None)
    if transport is None:
        raise UserError(f"{url!r} is not an address of a repository that gemfleet takes; {TAKEN}")
    if transport == "file":
        _check_inside_roots(url)
    return GitAddress(url, transport, branch)


def _check_inside_roots(url: str) -> None:
    path = Path(unquote(urlsplit(url).path)).resolve()
    roots = [Path(root).resolve() for root in os.environ.get(ROOTS_VARIABLE, "").split(":") if root]
    if not any(path.is_relative_to(root) for root in roots):
        raise UserError(
            f"{url!r} is not below a folder that repositories may be read from; name its folder in "
            f"${ROOTS_VARIABLE}, or {TAKEN}"
        )

"""Runs git without the machine's settings, without prompts and hooks, and with a time limit."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import which

from gemfleet.train.errors import UserError

from .address import GitAddress

Progress = Callable[[int, int, str], None]
KEPT_VARIABLES = frozenset(
    """HOME PATH LANG TMPDIR SSH_AUTH_SOCK SSL_CERT_FILE SSL_CERT_DIR GIT_SSL_CAINFO http_proxy https_proxy no_proxy
    HTTP_PROXY HTTPS_PROXY NO_PROXY GEMFLEET_GIT_USER GEMFLEET_GIT_TOKEN""".split()  # noqa: SIM905
)
TOKEN_HELPER = '!f() { echo "username=${GEMFLEET_GIT_USER:-oauth2}"; echo "password=$GEMFLEET_GIT_TOKEN"; }; f'
PERCENT = re.compile(r"([A-Z][A-Za-z ]+):\s+(\d{1,3})% ")
TELLING = re.compile(r"^(remote|fatal|error): |^! |Permission denied|Host key verification failed")
TAIL_CHARACTERS = 2000


class GitError(RuntimeError):
    """git failed or was too slow. detail: the end of its output"""

    def __init__(self, what: str, detail: str) -> None:
        super().__init__(what, detail)
        self.what, self.detail = what, detail

    def __str__(self) -> str:
        lines = [line.strip() for line in self.detail.splitlines() if line.strip()]
        telling = [line for line in lines if TELLING.search(line)]
        return f"{self.what}: {' / '.join((telling or lines)[-4:]) or 'no message'}"


def need_git() -> None:
    """Raise UserError unless git and git-lfs are installed."""
    missing = [program for program in ("git", "git-lfs") if which(program) is None]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} not found on the PATH; install it (Debian: apt-get install git git-lfs)"
        )


class Git:
    """Runs git in one folder, for one remote address."""

    def __init__(self, folder: Path, address: GitAddress, repository: Path | None = None) -> None:
        """folder: of the files; repository: of git's own state, if that is not in `folder`"""
        self.folder, self.address, self.repository = folder, address, repository

    def run(
        self, *arguments: str, seconds: float = 120.0, progress: Progress | None = None, hooks: bool = False
    ) -> str:
        """Run a git command. Returns its standard output, or with `progress` the end of all its output.

        Raises GitError when it fails or takes longer than `seconds`. All processes that git started end with the call.
        """
        command = ["git", *self._options(hooks), *arguments]
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if progress else subprocess.PIPE,
            start_new_session=True,
        )
        try:
            if progress is not None:
                return self._follow(process, arguments[0], seconds, progress)
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise GitError(f"git {arguments[0]} took longer than {seconds:g} s", "ended") from None
        finally:
            end_group(process)
        if process.returncode:
            raise GitError(f"git {arguments[0]} failed", err.decode(errors="replace")[-TAIL_CHARACTERS:])
        return out.decode(errors="surrogateescape")

    def _follow(self, process: subprocess.Popen[bytes], name: str, seconds: float, progress: Progress) -> str:
        """Read git's output as it comes, and give its percentages to `progress`."""
        timer = _Deadline(process, seconds)
        text = ""
        with timer:
            assert process.stdout is not None
            while chunk := os.read(process.stdout.fileno(), 4096):
                text = (text + chunk.decode(errors="replace"))[-TAIL_CHARACTERS:]
                if found := PERCENT.findall(text):
                    progress(int(found[-1][1]), 100, found[-1][0].strip().lower())
            code = process.wait()
        if timer.expired:
            raise GitError(f"git {name} took longer than {seconds:g} s", "ended")
        if code:
            raise GitError(f"git {name} failed", text)
        return text

    def _options(self, hooks: bool) -> list[str]:
        """Options with all settings of this call."""
        settings = [
            "credential.helper=",
            "protocol.allow=never",
            f"protocol.{self.address.transport}.allow=always",
            "http.lowSpeedLimit=1000",
            "http.lowSpeedTime=60",
            "core.symlinks=false",
            "submodule.recurse=false",
            "lfs.activitytimeout=60",
            "lfs.concurrenttransfers=4",
            *([] if hooks else ["core.hooksPath=/dev/null"]),
        ]
        host = os.environ.get("GEMFLEET_GIT_HOST")
        if host and re.fullmatch(r"[A-Za-z0-9.:-]+", host):
            settings.append(f"credential.https://{host}.helper={TOKEN_HELPER}")
        return [part for setting in settings for part in ("-c", setting)]

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name in KEPT_VARIABLES}
        apart = {"GIT_DIR": str(self.repository), "GIT_WORK_TREE": str(self.folder)} if self.repository else {}
        return kept | {
            **apart,
            "GIT_ALLOW_PROTOCOL": self.address.transport,
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TEMPLATE_DIR": "",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_LFS_FORCE_PROGRESS": "1",
            "GIT_SSH_COMMAND": ssh_command(),
            "LC_ALL": "C.UTF-8",
        }


def ssh_command() -> str:
    """An ssh command that never asks, and connects only to known hosts.

    GEMFLEET_GIT_KNOWN_HOSTS may name the file of known hosts, in place of the user's own.
    """
    known = os.environ.get("GEMFLEET_GIT_KNOWN_HOSTS")
    options = ["-oBatchMode=yes", "-oConnectTimeout=20", "-oStrictHostKeyChecking=yes"]
    return shlex.join(["ssh", *options, *([f"-oUserKnownHostsFile={known}"] if known else [])])


class _Deadline:
    """Ends a process and all that it started, unless the block ends within so many seconds."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        self.expired = False
        self._process = process
        self._timer = threading.Timer(seconds, self._end)

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _end(self) -> None:
        self.expired = True
        end_group(self._process)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads its own session, and all that it started."""
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        process.wait()


def git_lines(output: str, separator: str = "\n") -> Sequence[str]:
    """The lines of an output that are not empty."""
    return [part for part in output.split(separator) if part]

"""Reaches nodes and runs scripts on them with this machine's `ssh`: agents, jump hosts and ~/.ssh/config work as ever.

A script travels over standard input, so that no list of processes shows it, above all no token in it.
"""

from __future__ import annotations

import ipaddress
import json
import shlex
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ClusterError
from .description import NodeSection, SshSection

CONNECTION_FAILED = 255  # ssh's own exit code
SHOWN_LINES = 8
PARALLEL = 32


@dataclass(frozen=True)
class Answer:
    """How a script ended on a node."""

    node: NodeSection
    code: int
    output: str
    errors: str

    def problem(self, doing: str) -> str | None:
        """What went wrong while `doing`, with the end of what the node printed. None when nothing did."""
        if self.code == 0:
            return None
        said = (self.errors.strip() or self.output.strip()).splitlines()[-SHOWN_LINES:]
        if self.code == CONNECTION_FAILED:
            remedy = "check that `ssh` reaches it, or correct host, user, key and port in the file"
            return f"{self.node.host}: no connection ({' '.join(said[-2:])}); {remedy}"
        return f"{self.node.host}: {doing} ended with {self.code}:\n    " + "\n    ".join(said)

    def content(self) -> Any:
        """The JSON in the last line that the script printed. ClusterError when it is none."""
        try:
            return json.loads(self.output.strip().splitlines()[-1])
        except (ValueError, IndexError):
            raise ClusterError(f"{self.node.host} answered with something else: {self.output[-300:]!r}") from None


@dataclass(frozen=True)
class Ssh:
    """Runs scripts under bash on nodes. `settings`: the section `ssh` of the description."""

    settings: SshSection

    def command(self, node: NodeSection, *options: str) -> list[str]:
        """The command line of ssh up to the node's name. `options` come first."""
        settings, port = self.settings, node.ssh_port or self.settings.port
        keys = ["-i", str(Path(settings.key).expanduser()), "-o", "IdentitiesOnly=yes"] if settings.key else []
        hosts = [f"UserKnownHostsFile={Path(settings.known_hosts).expanduser()}"] if settings.known_hosts else []
        checked = "accept-new" if settings.accept_new_hosts else "yes"
        return [
            *("ssh", *options, *keys, *(["-p", str(port)] if port else [])),
            *(part for host in hosts for part in ("-o", host)),
            *("-o", f"StrictHostKeyChecking={checked}"),
            f"{settings.user}@{node.host}" if settings.user else node.host,
        ]

    def run(self, node: NodeSection, script: str, timeout_s: float) -> Answer:
        """Runs `script` to its end. A node that does not answer within `timeout_s` counts as a failed connection."""
        limits = [f"ConnectTimeout={self.settings.timeout_s}", "ServerAliveInterval=10", "ServerAliveCountMax=3"]
        quiet = [part for option in ["BatchMode=yes", "LogLevel=ERROR", *limits] for part in ("-o", option)]
        command = [*self.command(node, *quiet, "-T"), "bash", "-s"]
        try:
            done = subprocess.run(
                command, input=script, capture_output=True, text=True, errors="replace", timeout=timeout_s
            )
        except subprocess.TimeoutExpired:
            return Answer(node, CONNECTION_FAILED, "", f"no answer in {timeout_s:g} s")
        except FileNotFoundError:
            raise ClusterError("the program `ssh` is missing on this machine; install openssh-client") from None
        return Answer(node, done.returncode, done.stdout, done.stderr)

    def run_all(
        self, nodes: Sequence[NodeSection], script: Callable[[NodeSection], str], timeout_s: float, doing: str
    ) -> dict[str, Answer]:
        """Runs a script on all `nodes` at once; answers by host. ClusterError has one line for each that failed."""
        answers = self.try_all(nodes, script, timeout_s)
        problems = [text for answer in answers.values() if (text := answer.problem(doing))]
        if problems:
            raise ClusterError(f"{doing} failed on {len(problems)} of {len(nodes)} nodes:\n  " + "\n  ".join(problems))
        return answers

    def try_all(
        self, nodes: Sequence[NodeSection], script: Callable[[NodeSection], str], timeout_s: float
    ) -> dict[str, Answer]:
        """As `run_all`, but the answers of scripts that failed are answers, too."""
        if not nodes:
            return {}
        with ThreadPoolExecutor(min(PARALLEL, len(nodes))) as pool:
            answers = pool.map(lambda node: self.run(node, script(node), timeout_s), nodes)
            return {answer.node.host: answer for answer in answers}


def address_of(node: NodeSection) -> str:
    """The IP address at which other nodes reach `node`. ClusterError when its name has none here, or a loopback one."""
    if node.address is not None:
        return node.address
    try:
        return str(ipaddress.ip_address(node.host))
    except ValueError:
        pass
    try:
        address = str(socket.getaddrinfo(node.host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise ClusterError(f"{node.host} has no address here ({error.strerror}); give `address` in the file") from None
    if ipaddress.ip_address(address).is_loopback:
        raise ClusterError(f"{node.host} is {address} here, where no other node reaches it; give `address` in the file")
    return address


def exports(variables: Mapping[str, str]) -> str:
    """Lines of shell that set variables. A leading `~/` becomes the home of the account there."""
    return "".join(f"export {name}={home_path(value)}\n" for name, value in variables.items())


def home_path(text: str) -> str:
    """`text` as one word of shell. The shell expands a leading `~/` and nothing else."""
    return f'"$HOME"/{shlex.quote(text[2:])}' if text.startswith("~/") else shlex.quote(text)

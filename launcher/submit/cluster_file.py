"""Reads the file that describes a cluster (`gemfleet cluster`), and reaches that cluster with its token."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gemfleet.cluster.bringup.description import ClusterDescription
from gemfleet.cluster.bringup.ssh import Ssh
from gemfleet.cluster.errors import ClusterError
from gemfleet.cluster.network import free_port, why_unreachable
from gemfleet.cluster.token_file import load_token
from gemfleet.train.config.home import gemfleet_home
from gemfleet.train.config.load import load_validated
from gemfleet.train.errors import UserError

TUNNEL_SECONDS = 30.0


def load_description(path: Path | None) -> ClusterDescription:
    """The description in `path`, or all defaults. Raises UserError with a line for each problem."""
    return ClusterDescription() if path is None else load_validated(path, (), ClusterDescription)


def load_hosts(path: Path) -> ClusterDescription:
    """As `load_description`, but a missing head is a problem too."""
    description = load_description(path)
    if description.head is None:
        raise UserError(f"{path} has one problem:\n  head: missing; give the host that keeps runs and checkpoints")
    return description


def token_path(description: ClusterDescription) -> Path:
    """The file in which this machine keeps the cluster's token."""
    if description.token_file is not None:
        return Path(description.token_file).expanduser()
    return gemfleet_home() / "clusters" / description.name / "token"


def tunnel_command(description: ClusterDescription, local_port: int | None = None) -> list[str]:
    """An ssh command that forwards a port of this machine to the head's dashboard while it runs."""
    assert description.head is not None, "load_hosts saw to it"
    port = description.ports.dashboard
    forward = f"127.0.0.1:{local_port or port}:127.0.0.1:{port}"
    return Ssh(description.ssh).command(description.head, "-N", "-o", "ExitOnForwardFailure=yes", "-L", forward)


def use_token(description: ClusterDescription) -> None:
    """Make Ray's clients in this process send the cluster's token. Call it before Ray is imported."""
    path = token_path(description)
    load_token(path)
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(path))


@contextmanager
def tunnel(description: ClusterDescription) -> Iterator[str]:
    """Forward a port to the head's dashboard while the block runs. Yields its address. Raises ClusterError."""
    port = free_port("127.0.0.1")
    command = tunnel_command(description, port)
    command[1:1] = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={description.ssh.timeout_s}"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _wait_for(process, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _wait_for(process: subprocess.Popen[str], port: int) -> None:
    deadline = time.monotonic() + TUNNEL_SECONDS
    while why_unreachable("127.0.0.1", port, timeout_s=1):
        if process.poll() is not None or time.monotonic() > deadline:
            assert process.stderr is not None
            said = process.stderr.read().strip() if process.poll() is not None else f"nothing in {TUNNEL_SECONDS:g} s"
            raise ClusterError(f"no tunnel to the head: {said} ({shlex.join(process.args)})")  # type: ignore[arg-type]
        time.sleep(0.1)

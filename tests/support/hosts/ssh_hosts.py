"""An SSH server on hosts of a fleet, and a key with which one of them, the operator's desk, reaches all others."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from support.hosts.hosts import HOME, RAY_PATIENCE, Fleet, Host

SSHD = "/usr/sbin/sshd"
KEY = f"{HOME}/.ssh/id_ed25519"
HOSTS_FILE = f"{HOME}/hosts.yaml"
PROGRAMS = {SSHD: "openssh-server", "ssh": "openssh-client", "ssh-keygen": "openssh-client"}
SERVER = """
ListenAddress {address}
HostKey /tmp/ssh/host_key
AuthorizedKeysFile /tmp/ssh/authorized_keys
PidFile /tmp/ssh/pid
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
SetEnv HOME={home}
"""


def why_no_ssh() -> str | None:
    """Why no SSH server can run here; None when one can."""
    missing = {package for program, package in PROGRAMS.items() if shutil.which(program) is None}
    return f"needs the Debian packages {', '.join(sorted(missing))}" if missing else None


def serve_ssh(desk: Host, servers: Sequence[Host]) -> None:
    """root may log in to the servers from the desk with its key, and finds the private home there."""
    desk.run(["mkdir", "-m", "700", f"{HOME}/.ssh"])
    desk.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", KEY])
    public = desk.disk(f"{KEY}.pub").read_text()
    for host in servers:
        host.run(["mkdir", "-p", "/tmp/ssh", "/run/sshd"])
        host.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/tmp/ssh/host_key"])
        host.disk("/tmp/ssh/authorized_keys").write_text(public)
        host.disk("/tmp/ssh/config").write_text(SERVER.format(address=host.address, home=HOME))
        host.run([SSHD, "-f", "/tmp/ssh/config"])


def write_hosts_file(desk: Host, fleet: Fleet, programs: Path, workers: Mapping[str, Mapping[str, Any]]) -> None:
    """A description of the head and `workers`, a CPU each, as an operator would write it."""
    content = {
        "name": "lab",
        "programs": str(programs),
        "ssh": {"user": "root", "key": KEY, "known_hosts": f"{HOME}/.ssh/known_hosts"},
        "head": {"host": fleet["head"].address, "cpus": 0},
        "workers": [{"host": fleet[name].address, "cpus": 1, **more} for name, more in workers.items()],
        "object_store_gib": 0.25,
        "environment": {
            **RAY_PATIENCE,
            **{name: desk.environment[name] for name in ("HF_HUB_OFFLINE", "OMP_NUM_THREADS")},
            "RAY_memory_monitor_refresh_ms": "0",
        },
    }
    desk.disk(HOSTS_FILE).write_text(yaml.safe_dump(content))


def processes(host: Host) -> list[str]:
    """Every process of the host but its first, the SSH server, and the command that looks."""
    output = host.run(["ps", "-eo", "pid=,args="]).stdout.splitlines()
    quiet = ("/usr/sbin/sshd", "sshd:", "ps -eo", "timeout --kill-after", "cat")
    commands = [line.split(maxsplit=1) for line in output]
    return [f"{pid} {text}" for pid, text in commands if not text.startswith(quiet) and pid != str(os.getpid())]


def ssh_keyscan(desk: Host, host: Host) -> subprocess.CompletedProcess[str]:
    return desk.run(["ssh-keyscan", "-t", "ed25519", host.address])

"""Several hosts on one machine, each with its own network, disks, processes and name, joined by a switch. Needs root.

A host is a set of Linux namespaces kept alive by its process 1. Everything it has lives in them, so the kernel itself
clears all of it away when that process ends: when the fleet is closed, and also when the test run is killed.

    disks      `/` is read-only; `/tmp`, `/run`, `/var/tmp` and `/dev/shm` are private and empty. HOME is /tmp/home.
    network    one interface, eth0, on a private subnet without any route to the outside. As on many real hosts, the
               host's name resolves to 127.0.1.1.
    processes  a host sees only its own, so `ray stop` in one leaves the others alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from support.places import REPOSITORY

PROGRAMS = {
    "ip": "iproute2",
    "tc": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "hostname": "hostname",
}
HOME = "/tmp/home"
# Ray's own limits are 30 to 100 s, too short where the processes of all hosts start on the same two busy cores.
RAY_PATIENCE = {
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300",
    "RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT": "300",
    "RAY_agent_register_timeout_ms": "300000",
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_worker_register_timeout_seconds": "300",
}
HOST_NAMESPACES = ("--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc", "--kill-child")
HIDDEN = (Path("/tmp"), Path("/run"), Path("/var/tmp"))

# Arguments: the host's name, the size of its private disk, then the folders below /tmp that must stay visible.
INIT = r"""
set -eu
name=$1; size=$2; shift 2
hostname "$name"
ip link set lo up
mount -t sysfs -o ro sysfs /sys
mount -t tmpfs tmpfs /run
mkdir /run/tmp
mount -t tmpfs -o "mode=1777,size=$size" tmpfs /run/tmp
for folder in "$@"; do
    mkdir -p "/run$folder"
    mount --bind "$folder" "/run$folder"
    mount -o remount,bind,ro "/run$folder"
done
mount --move /run/tmp /tmp
mkdir -p /tmp/home
mount -t tmpfs -o mode=1777 tmpfs /var/tmp
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$name" > /run/hosts
mount --bind /run/hosts /etc/hosts
: > /run/resolv.conf
mount --bind /run/resolv.conf /etc/resolv.conf
mount -o remount,bind,ro /
trap '' CHLD   # survives exec: the kernel then reaps orphans for process 1
echo ready
exec cat
"""


@dataclass(frozen=True)
class Host:
    """One host. `pid` is its process 1 as seen from outside, `environment` what its commands find set."""

    name: str
    address: str
    pid: int
    environment: Mapping[str, str]

    def kill_all(self) -> None:
        """SIGKILL to every process of this host but its process 1, as if the power went and came back at once."""
        self.run(["sh", "-c", "kill -9 -1"], check=False)

    def sent_bytes(self) -> int:
        """What this host has sent over its interface since it was brought up, packet headers and all."""
        return int(self.run(["cat", "/sys/class/net/eth0/statistics/tx_bytes"]).stdout)

    def disk(self, inside: str | Path) -> Path:
        """Where a path of this host's file system is for the test itself, to place files and to look."""
        return Path(f"/proc/{self.pid}/root") / str(inside).lstrip("/")

    def command(self, arguments: Sequence[str], cwd: str = HOME, timeout_s: float = 60) -> list[str]:
        """The command line that runs `arguments` inside this host, ended there by force after `timeout_s` seconds."""
        inside = ["nsenter", "--target", str(self.pid), "--mount", "--uts", "--ipc", "--net", "--pid"]
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        limit = ["timeout", "--kill-after=5", str(timeout_s)]
        return [*inside, "env", "--ignore-environment", f"--chdir={cwd}", *variables, *limit, *arguments]

    def run(
        self, arguments: Sequence[str], *, cwd: str = HOME, timeout_s: float = 60, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end; stdout holds both streams. `check`: a failure raises AssertionError with the output."""
        command = self.command(arguments, cwd, timeout_s)
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if check and done.returncode:
            raise AssertionError(f"on {self.name}: {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}")
        return done


@dataclass(frozen=True)
class Fleet:
    """Hosts by name, in the order given, and the process whose network namespace is the switch between them."""

    hosts: Mapping[str, Host]
    switch_pid: int

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def unplug(self, name: str) -> None:
        """Cut the host off: its packets vanish, and its own interface loses its carrier."""
        in_network(self.switch_pid, "ip", "link", "set", name, "down")

    def plug_in(self, name: str) -> None:
        in_network(self.switch_pid, "ip", "link", "set", name, "up")

    @contextlib.contextmanager
    def slowed(self, name: str, rate: str, burst: str) -> Iterator[None]:
        """What the host sends goes no faster than `rate` (`1gbit`), but for `burst` (`1mb`) at once; in tc's units."""
        queue = f"root tbf rate {rate} burst {burst} latency 500ms".split()
        in_network(self[name].pid, *["tc", "qdisc", "add", "dev", "eth0"], *queue)
        try:
            yield
        finally:
            in_network(self[name].pid, *["tc", "qdisc", "del", "dev", "eth0", "root"])


@contextlib.contextmanager
def fleet_of(names: Sequence[str], *, subnet: str = "10.231.7", disk: str = "4g") -> Iterator[Fleet]:
    """Bring up one host for each name (at most 12 letters), at `subnet`.1, .2, …; all of them are gone at the end.

    `disk` is the size of each host's private /tmp in mount's notation. Memory is taken only for what is written.
    """
    with contextlib.ExitStack() as stack:
        switch = stack.enter_context(_namespaces(["--net"], ["sh", "-c", "echo ready; exec cat"]))
        in_network(switch.pid, "ip", "link", "add", "switch", "type", "bridge")
        in_network(switch.pid, "ip", "link", "set", "switch", "up")
        hosts = {}
        for number, name in enumerate(names, start=1):
            init = stack.enter_context(_namespaces(HOST_NAMESPACES, ["bash", "-c", INIT, "init", name, disk, *_kept()]))
            host = Host(name, f"{subnet}.{number}", _only_child(init.pid), _environment())
            _connect(host, switch.pid)
            hosts[name] = host
        yield Fleet(hosts, switch.pid)


def why_not() -> str | None:
    """Why this machine cannot have such hosts; None when it can."""
    if os.geteuid() != 0:
        return "hosts need root (network and mount namespaces)"
    missing = {package for program, package in PROGRAMS.items() if shutil.which(program) is None}
    if missing:
        return f"hosts need the Debian packages {', '.join(sorted(missing))}"
    probe = subprocess.run(["unshare", *HOST_NAMESPACES, "true"], capture_output=True, text=True)
    return f"this machine does not allow new namespaces: {probe.stderr.strip()}" if probe.returncode else None


def wait_until(condition: Callable[[], bool], otherwise: str, timeout_s: float = 240, pause: float = 0.3) -> None:
    """Looks again after each pause. AssertionError with `otherwise` when the time is over."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(pause)


def in_network(pid: int, *command: str) -> None:
    """Run a command of the test's own in the network namespace of process `pid`."""
    done = subprocess.run(["nsenter", "--target", str(pid), "--net", *command], capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"


@contextlib.contextmanager
def _namespaces(kinds: Sequence[str], keeper: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """New namespaces, held by `keeper`, which says `ready` and then reads its input until we close it, or die."""
    process = subprocess.Popen(
        ["unshare", *kinds, *keeper], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        first = process.stdout.readline()
        if first.strip() != "ready":
            process.stdin.close()
            raise AssertionError(f"a host did not come up: {first}{process.stdout.read()}")
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """With process 1 the kernel ends every process of the host before the wait returns."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()  # --kill-child passes it on
        process.wait()
    assert process.stdout is not None
    process.stdout.close()


def _connect(host: Host, switch_pid: int) -> None:
    in_network(switch_pid, *f"ip link add {host.name} type veth peer name eth0 netns {host.pid}".split())
    in_network(switch_pid, *f"ip link set {host.name} master switch up".split())
    in_network(host.pid, *f"ip address add {host.address}/24 dev eth0".split())
    in_network(host.pid, "ip", "link", "set", "eth0", "up")


def _only_child(pid: int) -> int:
    (child,) = psutil.Process(pid).children()
    return int(child.pid)


def _kept() -> list[str]:
    """Folders that hosts need and that their private disks would otherwise hide."""
    needed = {Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve(), REPOSITORY}
    return sorted(str(folder) for folder in needed if any(folder.is_relative_to(hidden) for hidden in HIDDEN))


def _environment() -> dict[str, str]:
    """The whole environment of a host's commands: nothing comes in from outside."""
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": HOME,
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        **RAY_PATIENCE,
        "RAY_memory_monitor_refresh_ms": "0",  # it would judge the hosts by the whole machine's memory
    }

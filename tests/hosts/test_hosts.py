"""The hosts themselves: what the other tests here rely on."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.hosts.hosts import Fleet, Host, fleet_of, wait_until

pytestmark = pytest.mark.hosts
PORT = 7000


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with fleet_of(["one", "two"]) as hosts:
        yield hosts


def test_disks_are_private_and_the_rest_is_read_only(fleet: Fleet) -> None:
    one, two = fleet["one"], fleet["two"]
    for folder in ("/tmp", "/run", "/var/tmp", "/dev/shm"):
        one.run(["touch", f"{folder}/mark-of-one"])
        assert one.disk(f"{folder}/mark-of-one").is_file()
        assert not two.disk(f"{folder}/mark-of-one").exists()
        assert not Path(folder, "mark-of-one").exists()
    refused = one.run(["touch", "/usr/mark-of-one"], check=False)
    assert "Read-only file system" in refused.stdout


def test_processes_and_names_are_private(fleet: Fleet) -> None:
    pids = fleet["one"].run(["sh", "-c", "hostname; cd /proc; echo [0-9]*"]).stdout.split()
    assert pids[0] == "one"
    assert len(pids) < 6  # process 1 and the commands of this very test
    assert "127.0.1.1" in fleet["one"].run(["getent", "hosts", "one"]).stdout


def test_no_route_leads_outside(fleet: Fleet) -> None:
    routes = fleet["one"].run(["ip", "route"]).stdout.splitlines()
    assert [route.split()[:3] for route in routes] == [["10.231.7.0/24", "dev", "eth0"]]


def test_cable_can_be_pulled(fleet: Fleet) -> None:
    one, two = fleet["one"], fleet["two"]
    server = subprocess.Popen(one.command(["python", "-m", "http.server", str(PORT)], timeout_s=200))
    try:
        wait_until(lambda: reaches(two, one), "two does not reach one", 60)
        fleet.unplug("two")
        assert not reaches(two, one)
        fleet.plug_in("two")
        wait_until(lambda: reaches(two, one), "two does not reach one", 60)
    finally:
        one.run(["sh", "-c", "kill $(ps ax | awk '/http.server/ && !/awk/ {print $1}')"], check=False)
        server.wait(timeout=20)


def test_commands_end_in_time(fleet: Fleet) -> None:
    started = time.monotonic()
    assert fleet["one"].run(["sleep", "100"], timeout_s=1, check=False).returncode == 124
    assert time.monotonic() - started < 60


def test_nothing_is_left_after_a_failure() -> None:
    pids = []

    def fail() -> None:
        with fleet_of(["brief"], subnet="10.231.8") as hosts:
            sleeper = subprocess.Popen(hosts["brief"].command(["sleep", "100"]))
            pids.extend([sleeper.pid, hosts["brief"].pid, hosts.switch_pid])
            time.sleep(0.5)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=20)
    assert alive == []


def reaches(source: Host, target: Host) -> bool:
    script = f"import socket; socket.create_connection(('{target.address}', {PORT}), timeout=2)"
    return source.run(["python", "-c", script], check=False).returncode == 0

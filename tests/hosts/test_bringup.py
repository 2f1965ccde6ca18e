"""From three machines with nothing but an SSH server to a cluster that trains, and back to nothing."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from support.hosts.hosts import HOME, Fleet, Host, fleet_of
from support.hosts.ray_cluster import prepare_head, write_run
from support.hosts.ssh_hosts import HOSTS_FILE, processes, serve_ssh, why_no_ssh, write_hosts_file

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(1500), pytest.mark.slow]
JOB_FOLDER = "/tmp/job"
UP_TIMEOUT_S = 900.0
STATUS = """
import sys, urllib.request, urllib.error
request = urllib.request.Request(sys.argv[1], headers=dict(header.split(": ") for header in sys.argv[2:]))
try:
    print(urllib.request.urlopen(request, timeout=20).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


@dataclass(frozen=True)
class Site:
    """The operator's desk, and the machines it reaches over ssh."""

    fleet: Fleet
    desk: Host
    head: Host

    def gemfleet(self, *arguments: str, check: bool = True) -> str:
        return self.desk.run(["gemfleet", *arguments], timeout_s=UP_TIMEOUT_S, check=check).stdout


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    reason = why_no_ssh()
    if reason is not None:
        pytest.skip(reason)
    with fleet_of(["head", "left", "right", "desk"], subnet="10.231.8") as fleet:
        desk = fleet["desk"]
        serve_ssh(desk, [fleet[name] for name in ("head", "left", "right")])
        write_hosts_file(desk, fleet, Path(sys.executable).parent, {"left": {}, "right": {"interface": "eth0"}})
        yield Site(fleet, desk, fleet["head"])


def test_from_nothing_to_a_run_and_back(site: Site) -> None:
    before = {name: processes(site.fleet[name]) for name in ("head", "left", "right")}
    assert before == {"head": [], "left": [], "right": []}
    output = site.gemfleet("cluster", "up", HOSTS_FILE)
    assert "up: 3 nodes" in output
    assert "-L 127.0.0.1:8265:127.0.0.1:8265" in output
    assert [node["state"] for node in status(site)] == ["in the cluster"] * 3
    assert "up: 3 nodes" in site.gemfleet("cluster", "up", HOSTS_FILE)  # a second time changes nothing

    check_that_requests_need_the_token(site)
    check_a_run(site)
    check_our_api_needs_a_token(site)

    site.gemfleet("cluster", "remove", HOSTS_FILE, site.fleet["right"].address, "--drain-s", "5")
    assert [node["state"] for node in status(site)] == ["in the cluster", "in the cluster", "stopped"]
    assert processes(site.fleet["right"]) == []
    site.gemfleet("cluster", "add", HOSTS_FILE, site.fleet["right"].address)
    assert [node["state"] for node in status(site)] == ["in the cluster"] * 3

    site.gemfleet("cluster", "down", HOSTS_FILE)
    for name in ("head", "left", "right"):
        assert processes(site.fleet[name]) == []
        assert not site.fleet[name].disk(f"{HOME}/.gemfleet-cluster/lab/token").exists()
    assert list(site.head.disk(f"{HOME}/.gemfleet/runs").glob("*/checkpoints/checkpoint-2/manifest.json"))


def test_what_is_wrong_is_said_before_anything_starts(site: Site) -> None:
    """An unreachable machine, one with a foreign Ray, and one whose key changed."""
    content = yaml.safe_load(site.desk.disk(HOSTS_FILE).read_text())
    wrong = f"{HOME}/wrong.yaml"
    site.desk.disk(wrong).write_text(
        yaml.safe_dump(
            {**content, "workers": [*content["workers"], site.desk.address], "ssh": {**content["ssh"], "timeout_s": 2}}
        )
    )
    output = site.gemfleet("cluster", "up", wrong, check=False)
    assert f"{site.desk.address}: no connection" in output
    left = site.fleet["left"]
    left.run(["ray", "start", "--head", "--num-cpus=0", "--include-dashboard=false"], timeout_s=300)
    output = site.gemfleet("cluster", "up", HOSTS_FILE, check=False)
    assert f"another Ray runs on {left.address}" in output
    left.run(["ray", "stop", "--force"], timeout_s=100)
    shutil.copy(site.fleet["right"].disk("/tmp/ssh/host_key"), left.disk("/tmp/ssh/host_key"))
    left.run(["sh", "-c", "kill -HUP $(cat /tmp/ssh/pid); sleep 1"])
    output = site.gemfleet("cluster", "up", HOSTS_FILE, check=False)
    assert f"{left.address}: no connection (" in output
    assert "Host key verification failed" in output
    assert [processes(site.fleet[name]) for name in ("head", "left", "right")] == [[], [], []]


def status(site: Site) -> list[dict[str, str]]:
    output = site.gemfleet("cluster", "status", HOSTS_FILE, "--json", check=False)
    return list(json.loads(output[output.index("[") :]))


def check_that_requests_need_the_token(site: Site) -> None:
    """Ray's job API on the head's loopback; from elsewhere it cannot even be reached."""
    token = site.desk.disk(f"{HOME}/.gemfleet/clusters/lab/token").read_text().strip()
    jobs = "http://127.0.0.1:8265/api/jobs/"
    assert answer(site.head, jobs) == "401"
    assert answer(site.head, jobs, "Authorization: Bearer wrong-token-of-some-length") in ("401", "403")
    assert answer(site.head, jobs, f"Authorization: Bearer {token}") == "200"
    assert "refused" in answer(site.fleet["left"], f"http://{site.head.address}:8265/api/jobs/")
    stranger = ["python", "-c", f"import ray; ray.init('{site.head.address}:6379', log_to_driver=False)"]
    refused = site.desk.run(stranger, timeout_s=300, check=False)
    assert refused.returncode != 0
    assert "authentication" in refused.stdout.lower()
    assert token not in "".join(site.fleet[name].run(["ps", "-eo", "args"]).stdout for name in ("head", "left"))


def check_a_run(site: Site) -> None:
    """From the desk, which has the configuration only, over the tunnel that `--hosts` opens."""
    prepare_head(site.head)
    write_run(site.desk, JOB_FOLDER, 2, {"workers": 2}, evaluation={"every": "never"})
    output = site.gemfleet("submit", f"{JOB_FOLDER}/run.yaml", "--hosts", HOSTS_FILE, "--follow")
    shown = site.head.run(["gemfleet", "show", "latest", "--json"], timeout_s=120).stdout
    run = json.loads(shown[shown.index("{") :])
    assert run["state"] == "succeeded", output
    assert {rank["address"] for rank in run["ranks"]} == {site.fleet[name].address for name in ("left", "right")}


def check_our_api_needs_a_token(site: Site) -> None:
    runs = "http://127.0.0.1:8266/api/v1/runs"
    token = site.head.disk(f"{HOME}/.gemfleet/api/read.token").read_text().strip()
    assert answer(site.head, runs) == "401"
    assert answer(site.head, runs, f"Authorization: Bearer {token}") == "200"


def answer(host: Host, url: str, *headers: str) -> str:
    """The status of a GET, or why there was none."""
    return host.run(["python", "-c", STATUS, url, *headers], check=False).stdout.strip()

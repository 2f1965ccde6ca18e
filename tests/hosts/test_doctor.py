"""Faults put on real hosts, one at a time: the doctor names each, on the host that has it, with its remedy."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.hosts.hosts import HOME, Fleet, Host, fleet_of
from support.hosts.ssh_hosts import HOSTS_FILE, serve_ssh, why_no_ssh, write_hosts_file

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(1500), pytest.mark.slow]
SITE = f"{HOME}/site"
# In every Python of the host. libfaketime would do it for all programs there, but Python 3.11's sleep fails under it.
HOUR_AHEAD = "import time\nreal = time.time\ntime.time = lambda: real() + 3600\n"
METADATA = "Metadata-Version: 2.1\nName: {package}\nVersion: 0.1.0\n"
EPHEMERAL = "32768-60999"
# Whatever else is wrong: small private disks, few open files in the test's own shell, and a machine that is busy.
EXPECTED = ("space", "limits", "object store", "checkpoint store")
# Where other programs use the processors, these warn of a slow link; only a failure is of the cluster's making.
SLOW_WHEN_BUSY = ("all-reduce", "exchange", "loss", "clock")


@dataclass(frozen=True)
class Patient:
    """A cluster that `gemfleet cluster up` made."""

    fleet: Fleet
    desk: Host

    def address(self, name: str) -> str:
        return self.fleet[name].address

    def doctor(self) -> list[dict[str, str]]:
        """All findings."""
        done = self.desk.run(["gemfleet", "doctor", "--hosts", HOSTS_FILE, "--json"], timeout_s=600, check=False)
        findings: list[dict[str, str]] = json.JSONDecoder().raw_decode(done.stdout[done.stdout.index("[\n") :])[0]
        assert done.returncode == int(any(finding["level"] == "fail" for finding in findings)), done.stdout
        assert all(finding["remedy"] for finding in findings if finding["level"] != "pass")
        return findings


def up(fleet: Fleet, workers: dict[str, dict[str, Any]]) -> Patient:
    desk = fleet["desk"]
    serve_ssh(desk, [fleet[name] for name in ("head", *workers)])
    write_hosts_file(desk, fleet, Path(sys.executable).parent, workers)
    desk.run(["gemfleet", "cluster", "up", HOSTS_FILE], timeout_s=900)
    return Patient(fleet, desk)


def not_right(findings: list[dict[str, str]]) -> list[tuple[str, str, str]]:
    harmless = [("warn", check) for check in SLOW_WHEN_BUSY]
    return [
        (f["level"], f["check"], f["where"])
        for f in findings
        if f["level"] != "pass" and f["check"] not in EXPECTED and (f["level"], f["check"]) not in harmless
    ]


@pytest.fixture(scope="module")
def sound() -> Iterator[Patient]:
    reason = why_no_ssh()
    if reason is not None:
        pytest.skip(reason)
    with fleet_of(["head", "left", "right", "desk"], subnet="10.231.10", disk="2g") as fleet:
        yield up(fleet, {"left": {}, "right": {}})


def test_a_sound_cluster_is_green(sound: Patient) -> None:
    findings = sound.doctor()
    assert not_right(findings) == []
    assert not [finding for finding in findings if finding["level"] == "fail"]
    by_check = {finding["check"]: finding["figure"] for finding in findings}
    assert "2 ranks" in by_check["all-reduce"]
    assert "to the next of 2 ranks" in by_check["exchange"]
    assert "open on all 6 ways" in by_check["ports"]
    assert "asked for on 3 nodes and by the job API" in by_check["token"]
    assert "equal on 3 nodes" in by_check["versions"]
    print(*(f"{f['check']} ({f['where']}): {f['figure']}" for f in findings), sep="\n")


@pytest.mark.skipif(shutil.which("nft") is None, reason="needs the Debian package nftables")
def test_lost_packets_are_laid_to_their_host(sound: Patient) -> None:
    with rule(sound.fleet["left"], "ip protocol tcp numgen random mod 100 < 5 drop"):
        findings = sound.doctor()
    assert ("fail", "loss", sound.address("left")) in not_right(findings)
    (loss,) = (finding for finding in findings if finding["check"] == "loss")
    assert "cable, switch port" in loss["remedy"]
    print(loss["figure"])


@pytest.mark.skipif(shutil.which("nft") is None, reason="needs the Debian package nftables")
def test_blocked_ports_are_named(sound: Patient) -> None:
    with rule(sound.fleet["right"], f"tcp dport {EPHEMERAL} tcp flags & (syn|ack) == syn drop"):
        findings = sound.doctor()
    wrong = not_right(findings)
    assert ("fail", "ports", sound.address("right")) in wrong
    assert {check for _, check, _ in wrong} <= {"ports", "all-reduce"}
    (ports,) = (finding for finding in findings if finding["check"] == "ports")
    assert "firewall" in ports["remedy"]


def test_a_full_disk_is_named(sound: Patient) -> None:
    left = sound.fleet["left"]
    left.run(["sh", "-c", "head -c 1500M /dev/zero > /tmp/hog"])
    try:
        findings = sound.doctor()
    finally:
        left.run(["rm", "/tmp/hog"])
    full = [finding for finding in findings if finding["check"] == "space" and finding["level"] == "fail"]
    assert {finding["where"] for finding in full} == {left.address}
    assert any("gemfleet prune" in finding["remedy"] for finding in full)


def test_what_is_wrong_from_the_start(sound: Patient) -> None:
    """Started anew with an old package on one host, GPUs that are not there, and a clock an hour ahead on the other."""
    fleet = sound.fleet
    sound.desk.run(["gemfleet", "cluster", "down", HOSTS_FILE], timeout_s=300)
    for package in ("safetensors", "peft"):
        write(fleet["left"], f"{SITE}/{package}-0.1.0.dist-info/METADATA", METADATA.format(package=package))
    write(fleet["right"], f"{SITE}/sitecustomize.py", HOUR_AHEAD)
    environment = {"PYTHONPATH": SITE}
    workers: dict[str, dict[str, Any]] = {
        "left": {"gpus": 2, "environment": environment},
        "right": {"environment": environment},
    }
    write_hosts_file(sound.desk, fleet, Path(sys.executable).parent, workers)
    sound.desk.run(["gemfleet", "cluster", "up", HOSTS_FILE], timeout_s=900)
    findings = sound.doctor()
    wrong = not_right(findings)
    left = sound.address("left")
    assert {("fail", "versions", left), ("warn", "versions", left), ("fail", "gpus", left)} <= set(wrong)
    said = " ".join(f"{f['figure']}; {f['remedy']}" for f in findings)
    assert "peft is 0.1.0, elsewhere" in said
    assert "Ray offers 2 GPUs, the driver shows 0; start Ray there without --num-gpus" in said
    assert ("fail", "clock", sound.address("right")) in wrong
    assert "chrony" in said
    check_that_a_run_is_refused(sound)


def write(host: Host, path: str, text: str) -> None:
    file = host.disk(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def check_that_a_run_is_refused(patient: Patient) -> None:
    """Before anything of it starts: the model it names does not even exist on the other nodes."""
    folder = patient.fleet["head"].disk("/tmp/job")
    folder.mkdir()
    (folder / "run.yaml").write_text(
        "train: {model: demo, data: {train: demo}}\ncluster: {workers: 2, gpus_per_worker: 0}\n"
    )
    done = patient.fleet["head"].run(
        ["sh", "-c", f". {HOME}/.gemfleet-cluster/lab/environment.sh; gemfleet train run.yaml"],
        cwd="/tmp/job", timeout_s=300, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout
    assert "the cluster is not fit for a run" in done.stdout
    assert f"versions ({patient.address('left')}): peft is 0.1.0" in done.stdout


class rule:  # noqa: N801
    """A rule of the firewall of `host` for what comes in, as long as the context lasts."""

    def __init__(self, host: Host, text: str) -> None:
        self.host, self.text = host, text

    def __enter__(self) -> None:
        script = f"table inet faults {{ chain in {{ type filter hook input priority 0; iifname eth0 {self.text}; }}; }}"
        self.host.run(["nft", script])

    def __exit__(self, *error: object) -> None:
        self.host.run(["nft", "delete", "table", "inet", "faults"])

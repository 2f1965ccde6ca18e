"""What the doctor concludes, from facts and measurements written here by hand; and its links, over loopback."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from gemfleet.cluster.doctor import gpus
from gemfleet.cluster.doctor import links as way
from gemfleet.cluster.doctor.check_facts import check_facts, check_versions
from gemfleet.cluster.doctor.check_measured import (
    check_auth,
    check_clock,
    check_collective,
    check_exchange,
    check_loss,
    check_ports,
)
from gemfleet.cluster.doctor.facts import disks, interface_facts, limits, versions
from gemfleet.cluster.doctor.gpus import has_code_for, torch_problem
from gemfleet.cluster.doctor.links import Sink, measure_link
from gemfleet.cluster.doctor.report import Finding, Level, failures, keep_findings, kept_findings
from support.doctor_facts import GIB, GPU, NODE, link


def nodes(count: int = 3) -> list[dict[str, Any]]:
    return [{**copy.deepcopy(NODE), "address": f"10.0.0.{n}"} for n in range(1, count + 1)]


def bad(found: list[Finding]) -> list[Finding]:
    return [finding for finding in found if finding.level is not Level.PASS]


def everything(facts: list[dict[str, Any]], offered: float = 2) -> list[Finding]:
    return check_facts(facts, {node["address"]: offered for node in facts}, {})


def test_a_sound_cluster_is_green() -> None:
    assert bad(everything(nodes())) == []


@pytest.mark.parametrize(
    ("path", "value", "level", "said"),
    [
        (("versions", "torch"), "2.12.0", Level.FAIL, "torch is 2.12.0, elsewhere 2.13.0; install torch 2.13.0 there"),
        (("versions", "gemfleet"), "", Level.FAIL, "gemfleet is missing, elsewhere 0.1.0"),
        (("versions", "numpy"), "2.3", Level.WARN, "numpy is 2.3, elsewhere 2.4"),
        (("gpus", "count"), 1, Level.FAIL, "Ray offers 2 GPUs, the driver shows 1; start Ray there without --num-gpus"),
        (("gpus", "count"), 4, Level.WARN, "Ray offers 2 GPUs, the driver shows 4"),
        (
            ("gpus", "torch_problem"),
            "torch 2.13.0+cpu is a build without CUDA",
            Level.FAIL,
            "the driver shows 2, but torch 2.13.0+cpu is a build without CUDA; update the driver there, or install",
        ),
        (("gpus", "devices"), [], Level.WARN, "`pip install nvidia-ml-py` there"),
        (("gpus", "devices"), [{**GPU, "ecc_errors": 3}], Level.FAIL, "3 uncorrected memory errors; drain the node"),
        (("gpus", "devices"), [{**GPU, "throttled": ["heat"]}], Level.WARN, "slowed by heat; look at cooling"),
        (
            ("gpus", "devices"),
            [{**GPU, "free": GIB, "processes": [77]}],
            Level.WARN,
            "end what holds it (processes 77)",
        ),
        (("disks", "home", "free"), GIB // 2, Level.FAIL, "home: 0.5 of 100.0 GiB free; free some (`gemfleet prune`)"),
        (("disks", "shared memory", "free"), 1 << 20, Level.FAIL, "give /dev/shm more"),
        (("limits", "open files"), 1024, Level.FAIL, "open files: raise it in /etc/security/limits.conf"),
        (("interface", "name"), "", Level.FAIL, "start Ray with --node-ip-address"),
        (("interface", "exists"), False, Level.FAIL, "correct NCCL_SOCKET_IFNAME"),
    ],
)
def test_what_is_wrong_with_one_node_is_named_with_its_remedy(
    path: tuple[str, ...], value: object, level: Level, said: str
) -> None:
    facts = nodes()
    section = facts[1]
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    (finding,) = bad(everything(facts))
    assert finding.where.startswith("10.0.0.2")
    assert finding.level is level
    assert said in finding.sentence()


def test_a_package_that_one_node_lacks_altogether_is_named() -> None:
    facts = nodes(2)
    del facts[1]["versions"]["ray"]
    assert [finding.where for finding in bad(check_versions(facts))] == ["10.0.0.2"]


def test_clocks_are_judged_beyond_what_the_question_took() -> None:
    assert check_clock("a", 0.9, 0.1).level is Level.PASS
    assert check_clock("a", 1.5, 1.0).level is Level.PASS
    assert check_clock("a", -3.0, 0.1).level is Level.WARN
    hour = check_clock("a", 3600.0, 0.1)
    assert hour.level is Level.FAIL
    assert "3600.000 s ahead" in hour.figure


def test_a_blocked_node_is_one_finding() -> None:
    links = {a: {b: link(problem="timed out" if b == "b" else "") for b in "abc" if b != a} for a in "abc"}
    (finding,) = check_ports(links)
    assert (finding.where, finding.level) == ("b", Level.FAIL)
    assert "not reached by a, c (timed out)" in finding.figure
    assert check_ports({"a": {"b": link()}, "b": {"a": link()}})[0].level is Level.PASS


def test_loss_is_laid_to_the_node_that_all_lossy_ways_share() -> None:
    links = {a: {b: link(resent=0.05 if b == "b" else 0.0001) for b in "abc" if b != a} for a in "abc"}
    (finding,) = check_loss(links)
    assert (finding.where, finding.level) == ("b", Level.FAIL)
    assert "5.0%" in finding.figure
    (one_way,) = check_loss({"a": {"b": link(resent=0.005)}, "b": {"a": link()}})
    assert (one_way.where, one_way.level) == ("a > b", Level.WARN)
    assert check_loss({"a": {"b": link()}})[0].level is Level.PASS


def test_the_sum_is_judged_by_its_result_and_the_link() -> None:
    ranks = [{"wrong": 0, "seconds": 0.1}, {"wrong": 0, "seconds": 0.2}]
    found = check_collective(ranks, 100_000_000, 1.25e9, "")
    assert found.level is Level.PASS
    assert "bus 0.50 GB/s, 40% of the link" in found.figure
    assert check_collective(ranks, 100_000_000, 12.5e9, "").level is Level.FAIL
    assert check_collective(ranks, 100_000_000, 0.0, "").level is Level.PASS
    assert check_collective([{"wrong": 1, "seconds": 0.1}], 100, 0.0, "").level is Level.FAIL
    assert "timed out" in check_collective([], 0, 0.0, "timed out").figure


def test_the_exchange_between_neighbours_is_judged_by_what_came_and_the_link() -> None:
    ranks = [{"exchanged_wrong": 0, "exchange_seconds": 0.1}, {"exchanged_wrong": 0, "exchange_seconds": 0.2}]
    found = check_exchange(ranks, 100_000_000, 1.25e9)
    assert found.level is Level.PASS
    assert "to the next of 2 ranks in 200 ms, 0.50 GB/s, 40% of the link" in found.figure
    assert check_exchange(ranks, 100_000_000, 12.5e9).level is Level.WARN
    assert check_exchange(ranks, 100_000_000, 0.0).level is Level.PASS
    ranks[1]["exchanged_wrong"] = 3
    assert check_exchange(ranks, 100_000_000, 0.0).level is Level.FAIL


def test_a_cluster_without_tokens_fails_and_a_single_machine_is_warned() -> None:
    facts = nodes(2)
    assert check_auth(facts, None)[0].level is Level.PASS
    assert check_auth(facts, "http://head:8265")[0].level is Level.FAIL
    facts[1]["auth"] = ""
    assert check_auth(facts, None)[0].level is Level.FAIL
    assert failures(check_auth(facts[1:], None)) == []


def test_facts_of_this_machine() -> None:
    assert versions()["torch"] != ""
    assert versions()["cuda"] != ""
    assert disks("~/not/there/yet")["home"]["total"] > 0
    assert limits()["open files"] != 0
    assert interface_facts("127.0.0.1")["name"] == "lo"
    assert interface_facts("192.0.2.1")["exists"] is False


def test_a_link_is_measured_and_a_closed_port_is_told() -> None:
    sink = Sink("127.0.0.1")
    measured = measure_link("127.0.0.1", sink.port, 8 << 20)
    sink.close()
    assert measured["problem"] == ""
    assert measured["speed"] > 1e6
    assert 0 <= measured["resent"] < 0.5
    assert measure_link("127.0.0.1", sink.port, 1)["problem"] != ""


@pytest.mark.parametrize(
    ("seen", "told"), [([0.03, 0.0, 0.001], 0.001), ([0.03, 0.05, 0.0], 0.03), ([0.001, 0.05], 0.001)]
)
def test_only_a_loss_that_is_seen_again_is_told(
    seen: list[float], told: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A burst of other traffic loses segments once; a bad cable does each time."""
    transfers = iter(seen)
    monkeypatch.setattr(way, "_transfer", lambda *_: {"problem": "", "speed": 1e9, "resent": next(transfers)})
    assert measure_link("192.0.2.1", 1, 8 << 20)["resent"] == told


def test_a_rank_sums_and_finds_the_result_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group of one, in this process."""
    from gemfleet.cluster.doctor import probe

    monkeypatch.setattr(probe, "pin_network_interface", lambda: "lo")
    rank = probe.RankProbe()
    _, port = rank.address()
    assert rank.all_reduce(0, 1, ("127.0.0.1", port), 4096, gpu=False) | {"seconds": 0, "exchange_seconds": 0} == {
        "wrong": 0,
        "seconds": 0,
        "interface": "lo",
        "exchanged_wrong": 0,
        "exchange_seconds": 0,
    }


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        ((7, 0), False),
        ((7, 5), True),
        ((8, 9), True),
        ((9, 0), True),
        ((10, 3), True),
        ((12, 1), True),
        ((13, 0), True),
    ],
)
def test_code_runs_within_a_major_version_and_ptx_on_what_is_newer(capability: tuple[int, int], runs: bool) -> None:
    kinds = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
    assert has_code_for(capability, kinds) is runs
    assert not has_code_for((8, 0), ["sm_86", "sm_90a"])
    assert has_code_for((9, 0), ["sm_90a"])


def test_what_keeps_torch_from_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert torch_problem([(9, 0)]) == f"torch {torch.__version__} is a build without CUDA"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(gpus, "_cuda_devices", lambda: int(bool(warnings.warn("the driver is too old", stacklevel=1))))
    assert torch_problem([(9, 0)]).endswith("(CUDA 13.0) cannot use them: the driver is too old")
    monkeypatch.setattr(gpus, "_cuda_devices", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])
    assert torch_problem([(7, 0), (9, 0), None]).endswith("no code for compute capability 7.0 (sm_75 sm_90)")
    assert torch_problem([(9, 0), None]) == ""


def test_a_disk_that_takes_nothing_hides_no_findings(tmp_path: Path) -> None:
    keep_findings(tmp_path / "a home that is gone", [Finding("space", "head", Level.FAIL, "0 GiB free", "free some")])
    assert kept_findings(tmp_path / "a home that is gone") is None

"""Judges what `measure` has measured: clocks, ways between nodes, the collective, and both stores. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .links import RESENT_WARN
from .report import Finding, Level, ranked

MIB = 2**20
CLOCK_WARN_S, CLOCK_FAIL_S = 1.0, 60.0
RESENT_FAIL = 0.01
# Shares of the link. gloo over one TCP connection reaches a third to two thirds, NCCL more.
LINK_WARN, LINK_FAIL = 0.25, 0.05
STORE_WARN = 50 * MIB
CHECKPOINT_WARN = 10 * MIB
Link = Mapping[str, Any]


def check_clock(address: str, skew_s: float, uncertainty_s: float) -> Finding:
    """`skew_s`: this node's clock minus the driver's; `uncertainty_s`: how far that may be wrong."""
    size = abs(skew_s) - uncertainty_s
    direction = "ahead of" if skew_s > 0 else "behind"
    figure = f"{abs(skew_s):.3f} s {direction} the driver's clock (± {uncertainty_s:.3f} s)"
    remedy = "let chrony or systemd-timesyncd set the clock there: times in logs and tokens of other services go by it"
    return ranked(
        "clock", address, figure, [(size > CLOCK_FAIL_S, Level.FAIL, remedy), (size > CLOCK_WARN_S, Level.WARN, remedy)]
    )


def check_ports(links: Mapping[str, Mapping[str, Link]]) -> list[Finding]:
    """Whether every receiver can be reached. One finding for each that cannot. `links`: see `measure.links`."""
    tried: dict[str, dict[str, Link]] = {}
    for sender, ways in links.items():
        for receiver, link in ways.items():
            tried.setdefault(receiver, {})[sender] = link
    findings = []
    for receiver, ways in tried.items():
        blocked = {sender: link["problem"] for sender, link in ways.items() if link["problem"]}
        if blocked:
            figure = f"not reached by {', '.join(blocked)} ({', '.join(sorted(set(blocked.values())))})"
            remedy = (
                "let the firewall there accept TCP from the other nodes at the kernel's own ports (ip_local_port_range)"
            )
            findings.append(Finding("ports", receiver, Level.FAIL, figure, remedy))
    count = sum(len(ways) for ways in links.values())
    return findings or [Finding("ports", "cluster", Level.PASS, f"open on all {count} ways between nodes")]


def check_loss(links: Mapping[str, Mapping[str, Link]]) -> list[Finding]:
    """Whether ways lose segments. The finding names the node that all lossy ways share, if there is one."""
    lossy = {
        (sender, receiver): link["resent"]
        for sender, ways in links.items()
        for receiver, link in ways.items()
        if not link["problem"] and link["resent"] > RESENT_WARN
    }
    if not lossy:
        return [Finding("loss", "cluster", Level.PASS, f"under {RESENT_WARN:.1%} of segments sent again on every way")]
    worst = max(lossy.values())
    shared = set.intersection(*({sender, receiver} for sender, receiver in lossy))
    where = shared.pop() if len(shared) == 1 and len(lossy) > 1 else " and ".join(f"{a} > {b}" for a, b in lossy)
    level = Level.FAIL if worst > RESENT_FAIL else Level.WARN
    figure = f"up to {worst:.1%} of segments had to be sent again ({', '.join(f'{a} > {b}' for a, b in lossy)})"
    return [
        Finding(
            "loss",
            where,
            level,
            figure,
            "look at cable, switch port and MTU there; collectives wait for each lost packet",
        )
    ]


def check_collective(ranks: Sequence[Mapping[str, Any]], size: int, promised: float, problem: str) -> Finding:
    """Whether the sum over all ranks is right and fast enough.

    ranks:    see `RankProbe.all_reduce`; size: bytes of the buffer
    promised: bytes a second of the slowest interface; 0 when not known
    problem:  why no rank answered; empty when they did

    The figure is the bus bandwidth that NCCL's tests print: 2 (n-1)/n times the size over the time of the slowest rank.
    """
    if problem:
        remedy = (
            "the interface of each rank, and `ports` above, say where; NCCL_DEBUG=INFO in the environment says more"
        )
        return Finding("all-reduce", "cluster", Level.FAIL, problem, remedy)
    wrong = sum(rank["wrong"] for rank in ranks)
    world = len(ranks)
    seconds = max(rank["seconds"] for rank in ranks)
    bandwidth = 2 * (world - 1) / world * size / seconds if world > 1 else size / seconds
    share = f", {bandwidth / promised:.0%} of the link" if promised else ""
    figure = f"{world} ranks, {size / MIB:.0f} MiB in {seconds * 1000:.0f} ms, bus {bandwidth / 1e9:.2f} GB/s{share}"
    slow = "make the ranks use the fast interface (`interface` in the file), and stop other traffic on the link"
    low = bandwidth / promised if promised else 1.0
    return ranked(
        *("all-reduce", "cluster", figure if not wrong else f"{wrong} elements hold a wrong sum; {figure}"),
        [
            (
                wrong > 0,
                Level.FAIL,
                "take out one node after the other until the sum is right: its GPU or network damages data",
            ),
            (low < LINK_FAIL, Level.FAIL, slow),
            (low < LINK_WARN, Level.WARN, slow),
        ],
    )


def check_exchange(ranks: Sequence[Mapping[str, Any]], size: int, promised: float) -> Finding:
    """Whether each rank gets from the one before it what was sent, and fast enough for passes that ranks share.

    ranks, size, promised: as in `check_collective`
    """
    wrong = sum(rank["exchanged_wrong"] for rank in ranks)
    seconds = max(rank["exchange_seconds"] for rank in ranks)
    speed = size / max(seconds, 1e-9)
    share = f", {speed / promised:.0%} of the link" if promised else ""
    figure = f"{size / MIB:.0f} MiB to the next of {len(ranks)} ranks in {seconds * 1000:.0f} ms, "
    figure += f"{speed / 1e9:.2f} GB/s{share}"
    slow = "place ranks that share passes (train.context_parallel) on one node, or make them use the fast interface"
    low = speed / promised if promised else 1.0
    return ranked(
        *("exchange", "cluster", figure if not wrong else f"{wrong} elements came wrong; {figure}"),
        [
            (wrong > 0, Level.FAIL, "take out one node after the other until all is right: its network damages data"),
            (low < LINK_WARN, Level.WARN, slow),
        ],
    )


def check_object_store(address: str, size: int, seconds: float) -> Finding:
    """How fast `size` bytes reached a node through Ray's object store."""
    return _speed(
        "object store", address, size, seconds, STORE_WARN, "the link from the driver's node, or /dev/shm, is slow"
    )


def check_checkpoint_store(address: str, size: int, seconds: float) -> Finding:
    """How fast a checkpoint of `size` bytes went from a node to the head's disk."""
    remedy = "the head's disk or its link is slow: put GEMFLEET_HOME on a faster disk, or save less often"
    return _speed("checkpoint store", address, size, seconds, CHECKPOINT_WARN, remedy)


def _speed(check: str, where: str, size: int, seconds: float, least: int, remedy: str) -> Finding:
    speed = size / max(seconds, 1e-9)
    figure = f"{speed / MIB:.0f} MiB/s ({size / MIB:.0f} MiB in {seconds:.2f} s)"
    return ranked(check, where, figure, [(speed < least, Level.WARN, remedy)])


def check_auth(facts: Sequence[Mapping[str, Any]], open_dashboard: str | None) -> list[Finding]:
    """Whether every node's Ray asks for a token. `open_dashboard`: the job API's address if it answers without one."""
    off = [node["address"] for node in facts if node["auth"].lower() != "token"]
    remedy = (
        "bring the cluster up with `gemfleet cluster up`, or set RAY_AUTH_MODE=token and a token on every node first"
    )
    if open_dashboard:
        figure = f"{open_dashboard} answers requests without a token"
        return [Finding("token", "cluster", Level.FAIL if len(facts) > 1 else Level.WARN, figure, remedy)]
    if off:
        level = Level.FAIL if len(facts) > 1 else Level.WARN
        return [Finding("token", "cluster", level, f"not asked for by {', '.join(off)}", remedy)]
    return [Finding("token", "cluster", Level.PASS, f"asked for on {len(facts)} nodes and by the job API")]

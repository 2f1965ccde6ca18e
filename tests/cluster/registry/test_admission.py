"""Which run begins: in order, where its ranks have room beside what others have claimed."""

from __future__ import annotations

from pathlib import Path

import pytest
from gemfleet.cluster.inventory import Node
from gemfleet.cluster.registry.admission import Claim, judge, room_for
from gemfleet.cluster.registry.claims import Claims
from gemfleet.cluster.registry.registry_salvage import salvage
from gemfleet.cluster.registry.run_registry import RunRegistry, RunState
from hypothesis import given
from hypothesis import strategies as st


def node(name: str, cpus: float = 4, free: float | None = None, gpus: float = 0, kind: str = "") -> Node:
    free_cpus = cpus if free is None else free
    return Node(name, name, name, name == "a", cpus, gpus, free_cpus, gpus, 0, 0, kind=kind)


def claim(name: str, workers: int, at: float = 0.0, admitted: bool = False, **held: int) -> Claim:
    return Claim(name, workers, 1.0, 0.0, "", at, admitted, held)


NODES = [node("a"), node("b")]


def test_what_fits_begins_and_what_does_not_says_why() -> None:
    assert judge(claim("x", 8), [], NODES).admitted
    running = claim("first", 6, admitted=True, a=4, b=2)
    busy = [node("a", free=0), node("b", free=2)]
    assert judge(claim("x", 2), [running], busy).admitted
    waits = judge(claim("x", 3), [running], busy)
    assert (waits.admitted, waits.behind) == (False, True)
    assert "first in the queue, waits for room beside first: asked for 3 workers" in waits.reason


def test_a_claim_holds_before_its_ranks_start_and_while_they_restart() -> None:
    assert not judge(claim("x", 3), [claim("first", 6, admitted=True)], NODES).admitted
    assert not judge(claim("x", 3), [claim("first", 6, admitted=True, a=4)], [node("a", free=0), node("b")]).admitted
    assert judge(claim("x", 2), [claim("first", 6, admitted=True)], NODES).admitted


def test_runs_begin_in_order() -> None:
    running, large = claim("running", 6, admitted=True, a=4, b=2), claim("large", 4, at=1.0)
    small = judge(claim("small", 1, at=2.0), [running, large], [node("a", free=0), node("b", free=2)])
    assert (small.admitted, small.behind) == (False, True)
    assert small.reason == "number 2 in the queue, behind run large"
    impossible = claim("impossible", 9, at=1.0)
    assert judge(claim("small", 1, at=2.0), [impossible], NODES).admitted
    too_large = judge(impossible, [], NODES)
    assert (too_large.admitted, too_large.behind) == (False, False)
    assert "asked for 9 workers" in too_large.reason


def test_what_strangers_use_is_not_ours() -> None:
    used = [node("a", free=1), node("b", free=0)]
    verdict = judge(claim("x", 2), [], used)
    assert (verdict.admitted, verdict.behind) == (False, False)
    assert room_for(claim("x", 2, a=2), [], used) == 3  # its own two and one that is free


def test_gpus_of_one_kind_only() -> None:
    nodes = [node("a", gpus=8, kind="H100"), node("b", gpus=4, kind="L4"), node("c")]
    mine = Claim("x", 8, 0.25, 1.0, "H100", 0.0, False, {})
    assert room_for(mine, [], nodes) == 8
    assert room_for(mine, [Claim("y", 4, 0.25, 1.0, "L4", 0.0, True, {})], nodes) == 8
    assert room_for(mine, [Claim("y", 4, 0.25, 1.0, "", 0.0, True, {})], nodes) == 4


@given(st.lists(st.tuples(st.integers(1, 6), st.booleans()), max_size=6), st.integers(1, 8))
def test_what_is_admitted_never_exceeds_the_cluster(others: list[tuple[int, bool]], workers: int) -> None:
    claims = [claim(f"r{i}", size, at=float(i), admitted=admitted) for i, (size, admitted) in enumerate(others)]
    claimed = sum(c.workers for c in claims if c.admitted)
    verdict = judge(claim("x", workers, at=99.0), claims, NODES)
    assert verdict.admitted or verdict.reason
    if verdict.admitted:
        assert claimed + workers <= 8


@pytest.fixture
def registry(tmp_path: Path) -> RunRegistry:
    return RunRegistry(tmp_path / "gemfleet.db")


def test_claims_last_as_long_as_their_runs(registry: RunRegistry) -> None:
    claims = Claims(registry, "10.0.0.1:6379")
    for name in ("one", "two", "three"):
        registry.create_run(name, name, "")
        claims.queue(name, 5, 1.0, 0.0)
    assert claims.admit("one", NODES).admitted
    assert claims.admit("two", NODES).reason.startswith("first in the queue, waits for room beside one")
    assert claims.admit("three", NODES).reason == "number 2 in the queue, behind run two"
    registry.transition("two", RunState.STOPPED)  # cancelled while it waited
    registry.transition("one", RunState.SUCCEEDED)
    assert claims.admit("three", NODES).admitted
    registry.create_run("elsewhere", "elsewhere", "")
    other = Claims(registry, "10.0.0.9:6379")
    other.queue("elsewhere", 8, 1.0, 0.0)
    assert other.admit("elsewhere", NODES).admitted


def test_an_elastic_claim_follows_its_size_and_ranks_are_what_is_held(registry: RunRegistry) -> None:
    claims = Claims(registry, "here")
    registry.create_run("one", "one", "")
    claims.queue("one", 1, 1.0, 0.0)
    claims.admit("one", NODES)
    claims.resize("one", 3)
    for rank in range(3):
        registry.heartbeat("one", rank, "b", "10.0.0.2", rank)
    mine, others = claims.split("one")
    assert (mine.workers, mine.admitted, dict(mine.held), others) == (3, True, {"b": 3}, [])


def test_a_claim_comes_back_when_the_registry_was_rebuilt(registry: RunRegistry) -> None:
    claims = Claims(registry, "here")
    registry.create_run("one", "one", "")
    claims.queue("one", 1, 1.0, 0.0)
    assert claims.admit("one", NODES).admitted
    claims.resize("one", 3)
    registry.path.unlink()
    RunRegistry(registry.path).create_run("one", "one", "")  # another process rebuilt it from the run's folder
    mine, _ = claims.split("one")
    assert (mine.workers, mine.admitted) == (3, True)


def test_a_removed_run_leaves_no_claim(registry: RunRegistry) -> None:
    claims = Claims(registry, "here")
    registry.create_run("one", "one", "")
    claims.queue("one", 1, 1.0, 0.0)
    registry.transition("one", RunState.STOPPED)
    registry.delete_run("one")
    assert claimed(registry) == []


def test_claims_are_salvaged_from_a_damaged_registry(registry: RunRegistry, tmp_path: Path) -> None:
    """A run that waits or trains keeps its place, though the process that repairs did not make its claim."""
    registry.create_run("one", "one", "")
    Claims(registry, "here").queue("one", 3, 1.0, 0.0)
    rebuilt = RunRegistry(tmp_path / "rebuilt.db")
    with rebuilt.connect() as db:
        assert salvage(registry.path, db) == 1
    assert claimed(rebuilt) == [("one", 3)]


def claimed(registry: RunRegistry) -> list[tuple[str, int]]:
    with registry.connect() as db:
        return [(row["run_id"], row["workers"]) for row in db.execute("SELECT * FROM claims")]

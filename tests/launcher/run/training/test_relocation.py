"""When ranks must go elsewhere, and how they are told: with fakes and a real registry."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from gemfleet.cluster.inventory import Node
from gemfleet.cluster.registry.run_registry import RunRegistry, RunState
from gemfleet.launcher.placement import Placement
from gemfleet.launcher.run.admission import settled_room
from gemfleet.launcher.run.training.failure_policy import Move
from gemfleet.launcher.run.training.relocation import LOOK_SECONDS, SETTLE_SECONDS, MoveWatch, reason_to_move

RUN = "run-1"
TWO = Placement(2, 1.0, 0, "PACK")


def node(name: str, free: float, draining: bool = False) -> Node:
    return Node(name, f"10.0.0.{name}", name, name == "1", 2.0, 0.0, free, 0.0, 0, 0, draining=draining)


@pytest.fixture
def registry(gemfleet_home: Path) -> RunRegistry:
    registry = RunRegistry(gemfleet_home / "gemfleet.db")
    registry.create_run(RUN, "run", "{}")
    registry.transition(RUN, RunState.TRAINING)
    return registry


def test_a_draining_node_with_ranks_and_room_for_more_are_reasons() -> None:
    assert reason_to_move([node("1", 0), node("2", 0)], {"1", "2"}, 2, 2) is None
    assert reason_to_move([node("1", 0), node("2", 0), node("3", 0, draining=True)], {"1", "2"}, 2, 2) is None
    leaving = reason_to_move([node("1", 0), node("2", 0, draining=True)], {"1", "2"}, 2, 4)
    assert leaving == Move("preempted", "the node 10.0.0.2 is being drained")
    assert reason_to_move([node("1", 0)], {"1"}, 2, 4) == Move("grown", "there is room for 4 ranks instead of 2")


class FakeRecorder:
    def __init__(self) -> None:
        self.paused = 0

    def pause(self, paused: bool) -> None:
        assert paused
        self.paused += 1


def watch_of(
    registry: RunRegistry, nodes: Sequence[list[Node]], wanted: Sequence[int]
) -> tuple[MoveWatch, FakeRecorder]:
    """A watch over a cluster that is as the first of `nodes` at its first look, and so on; of `wanted` likewise."""
    recorder, looks, sizes, times = FakeRecorder(), iter(nodes), iter(wanted), iter(range(0, 1000, int(LOOK_SECONDS)))
    registry.heartbeat(RUN, 0, "1", "10.0.0.1", 1)
    arguments: Any = (registry, RUN, recorder, 2, lambda: next(sizes), lambda: next(looks), lambda: next(times))
    return MoveWatch(*arguments), recorder


def test_a_drained_node_is_left_at_once_and_the_ranks_are_told_again_and_again(registry: RunRegistry) -> None:
    watch, recorder = watch_of(registry, [[node("1", 0)], [node("1", 0, draining=True)]], [2, 2])
    watch.look()
    assert (watch.asked, recorder.paused) == (None, 0)
    for _ in range(3):
        watch.look()
    assert watch.asked is not None
    assert recorder.paused == 3
    events = [event for event in registry.events(RUN) if event["kind"] == "moving"]
    assert [event["data"]["kind"] for event in events] == ["preempted"]


def test_room_is_taken_once_it_has_stayed(registry: RunRegistry) -> None:
    settle = int(SETTLE_SECONDS / LOOK_SECONDS)
    sizes = [4, 2, *[4] * (settle + 1)]
    watch, recorder = watch_of(registry, [[node("1", 0)]] * len(sizes), sizes)
    for _ in range(2 + settle):
        watch.look()
    assert (watch.asked, recorder.paused) == (None, 0)
    watch.look()
    assert watch.asked == Move("grown", "there is room for 4 ranks instead of 2")
    assert recorder.paused == 1


def test_room_is_counted_once_it_has_settled() -> None:
    seen, now = [0, 0, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2], [0.0]
    readings = iter(seen)

    def sleep(seconds: float) -> None:
        now[0] += seconds

    assert settled_room(TWO, 4, lambda: [node("1", next(readings))], lambda: now[0], sleep) == 2
    assert settled_room(TWO, 2, lambda: [node("1", 5)], lambda: now[0], sleep) == 5

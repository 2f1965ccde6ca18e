"""The decision after a failure, for every fault that a run must survive, and Ray's callback that carries it out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from gemfleet.cluster.inventory import Node
from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.launcher.placement import Placement
from gemfleet.launcher.run.training import callback
from gemfleet.launcher.run.training.callback import FitEndedError, RestartOnlyWhereDecided
from gemfleet.launcher.run.training.failure_policy import (
    Asked,
    Decision,
    End,
    Move,
    Relocate,
    Restart,
    Shrink,
    decide,
    failures_left,
)

Event = dict[str, Any]
LOST = RuntimeError("the actor died")
GROW, LEAVE = Move("grown", "room"), Move("preempted", "drained")
TWO = Placement(2, 1.0, 0, "PACK")


def event(kind: EventKind, message: str = "", **data: Any) -> Event:
    return {"kind": str(kind), "message": message, "data": data}


ATTEMPT = event(EventKind.ATTEMPT)
SHORT = event(EventKind.RANK_OUT_OF_MEMORY, "out of memory with 8 rows", rank=1, micro=8)
HALVED = event(EventKind.OUT_OF_MEMORY)
GONE = event(EventKind.PLACES_LOST, "a node was lost")
MOVED = event(EventKind.MOVED, excused=False)
LEFT = event(EventKind.MOVED, excused=True)
HUNG = event(EventKind.HANG, "rank 1 made no progress", rank=1)
BAD_ROW = event(EventKind.FATAL, "row 7 is bad", cause="user")
NOT_A_NUMBER = event(EventKind.FATAL, "step 3: the loss is nan", cause="training")
UPLOAD_FAILED = event(EventKind.CHECKPOINT_FAILED, "checkpoint-4 was lost")
DAMAGED = event(EventKind.CHECKPOINT_DAMAGED)
STOPPED = event(EventKind.STOP)
Row = tuple[str, Sequence[Event], BaseException | None, Asked, Decision]

# What happened; the events of the launch; what the ranks or Ray raised; what was asked of the ranks; what follows.
FAULTS: list[Row] = [
    ("worker killed", [ATTEMPT], LOST, Asked(3), Restart()),
    ("worker killed once too often", [ATTEMPT, ATTEMPT], LOST, Asked(1), End("training")),
    ("worker killed, no failure allowed", [ATTEMPT], LOST, Asked(0), End("training")),
    ("node lost", [ATTEMPT, GONE], LOST, Asked(3), Relocate("a node was lost", excused=False)),
    ("node lost once too often", [ATTEMPT, MOVED, ATTEMPT, GONE], LOST, Asked(1), End("training", "a node was lost")),
    ("node lost, then a worker killed", [ATTEMPT, GONE, MOVED, ATTEMPT], LOST, Asked(3), Restart()),
    ("node lost while the run stops", [ATTEMPT, GONE], LOST, Asked(3, stop=True), End("training", "a node was lost")),
    ("node partitioned", [ATTEMPT, HUNG, GONE], LOST, Asked(3), Relocate("a node was lost", excused=False)),
    ("out of memory on one rank", [ATTEMPT, SHORT], LOST, Asked(0), Shrink(SHORT)),
    ("out of memory on two ranks at once", [ATTEMPT, SHORT, SHORT], LOST, Asked(0), Shrink(SHORT)),
    ("out of memory again with half the rows", [ATTEMPT, SHORT, HALVED, ATTEMPT, SHORT], LOST, Asked(0), Shrink(SHORT)),
    ("out of memory, then a worker killed", [ATTEMPT, SHORT, HALVED, ATTEMPT], LOST, Asked(1), Restart()),
    ("out of memory and the node lost with it", [ATTEMPT, SHORT, GONE], LOST, Asked(3), Shrink(SHORT)),
    ("hang", [ATTEMPT, HUNG], LOST, Asked(3), Restart()),
    ("disk full on the head", [ATTEMPT, UPLOAD_FAILED], None, Asked(3), End()),
    ("partition during upload, then a worker killed", [ATTEMPT, UPLOAD_FAILED], LOST, Asked(3), Restart()),
    ("checkpoint damaged", [ATTEMPT, DAMAGED], LOST, Asked(3), Restart()),
    ("bad row", [ATTEMPT, BAD_ROW], LOST, Asked(3), End("user", "row 7 is bad")),
    ("bad row, seen on two ranks", [ATTEMPT, BAD_ROW, BAD_ROW], LOST, Asked(3), End("user", "row 7 is bad")),
    ("bad row, and others ran out of memory", [ATTEMPT, SHORT, BAD_ROW], LOST, Asked(3), End("user", "row 7 is bad")),
    ("NaN loss", [ATTEMPT, NOT_A_NUMBER], LOST, Asked(3), End("training", "step 3: the loss is nan")),
    ("stop", [ATTEMPT, STOPPED], None, Asked(3, stop=True, saved=True), End()),
    ("stop, and a worker killed before it saved", [ATTEMPT, STOPPED], LOST, Asked(3, stop=True), Restart()),
    ("preemption", [ATTEMPT], None, Asked(0, LEAVE, saved=True), Relocate("drained", excused=True)),
    ("preempted before all was saved", [ATTEMPT, GONE], LOST, Asked(0, LEAVE), Relocate("a node was lost", True)),
    ("preempted, and something else failed", [ATTEMPT], LOST, Asked(3, LEAVE), Restart()),
    ("preempted and stopped", [ATTEMPT, STOPPED], None, Asked(3, LEAVE, stop=True, saved=True), End()),
    ("resize up", [ATTEMPT], None, Asked(0, GROW, saved=True), Relocate("room", excused=True)),
    ("resize up asked for, the last step came first", [ATTEMPT], None, Asked(3, GROW), End()),
    ("three moves in order, then a worker killed", [*[ATTEMPT, LEFT] * 3, ATTEMPT], LOST, Asked(1), Restart()),
    ("trained to the end", [ATTEMPT], None, Asked(3), End()),
    ("Ray ended the run before any rank began", [], LOST, Asked(3), Restart()),
]


@pytest.mark.parametrize(
    ("events", "error", "asked", "expected"), [row[1:] for row in FAULTS], ids=[r[0] for r in FAULTS]
)
def test_what_follows(events: Sequence[Event], error: BaseException | None, asked: Asked, expected: Decision) -> None:
    assert decide(events, error, asked) == expected


def test_moving_is_no_failure_and_losing_a_node_is_one() -> None:
    events: list[Event] = []
    for moved, left in ((LEFT, 1), (LEFT, 1), (MOVED, 0), (MOVED, -1)):
        events += [ATTEMPT, moved]
        assert failures_left(events, 1) == left


class FakeRecorder:
    def __init__(self, *events: Event, broken: bool = False) -> None:
        self.events, self.broken = list(events), broken

    def launch_events(self) -> list[Event]:
        if self.broken:
            raise OSError("unreachable")
        return self.events

    def event(self, kind: EventKind, message: str, data: dict[str, Any]) -> None:
        self.events.append(event(kind, message, **data))


def failed(recorder: FakeRecorder, monkeypatch: pytest.MonkeyPatch, nodes: Sequence[str] = ("1",)) -> None:
    """Two ranks failed on a cluster of these nodes, each with room for two, of which the first holds the model."""
    living = [Node(name, f"10.0.0.{name}", name, name == "1", 2.0, 0.0, 2.0, 0.0, 0, 0) for name in nodes]
    monkeypatch.setattr(callback, "answering_nodes", lambda: living)
    failures: dict[int, Exception] = {1: RuntimeError("the actor died\nand pages of more")}
    RestartOnlyWhereDecided(recorder, TWO, ["1"], 3).after_exception(None, failures)  # type: ignore[arg-type]


def test_an_error_that_would_come_again_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = FakeRecorder(ATTEMPT, BAD_ROW)
    with pytest.raises(FitEndedError, match="row 7 is bad"):
        failed(recorder, monkeypatch)
    assert recorder.events == [ATTEMPT, BAD_ROW]  # the other ranks failed with it, and say nothing new


def test_a_lost_rank_is_told_and_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = FakeRecorder(ATTEMPT)
    failed(recorder, monkeypatch)
    assert recorder.events[1:] == [event(EventKind.RANK_FAILED, "rank 1: RuntimeError: the actor died", rank=1)]
    failed(FakeRecorder(broken=True), monkeypatch)  # nobody to ask: Ray's own restart goes on


def test_want_of_memory_ends_rays_run_until_it_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = FakeRecorder(ATTEMPT, SHORT)
    with pytest.raises(FitEndedError, match="out of memory with 8 rows"):
        failed(recorder, monkeypatch)
    recorder.events += [HALVED, ATTEMPT]
    failed(recorder, monkeypatch)  # another failure, later


@pytest.mark.parametrize(("nodes", "room", "joined"), [([], 0, []), (["1", "2"], 2, ["10.0.0.2"])])
def test_places_that_ray_would_wait_for_or_mistake_end_its_run(
    nodes: list[str], room: int, joined: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = FakeRecorder(ATTEMPT)
    with pytest.raises(FitEndedError, match=f"places for {room} of 2"):
        failed(recorder, monkeypatch, nodes)
    assert recorder.events[-1]["data"] == {"room": room, "joined": joined}

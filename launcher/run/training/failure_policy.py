"""Decides what happens after the ranks of a fit ended. Ray's controller and the driver carry the decision out.

The decision is a pure function of this launch's events in the registry. So both processes decide the same, also after
one of them has restarted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gemfleet.cluster.registry.event_kinds import EventKind

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Move:
    """Why the ranks save and end now.

    kind: `preempted`: a node with ranks is being drained; `grown`: there is room for more ranks
    """

    kind: Literal["preempted", "grown"]
    reason: str


@dataclass(frozen=True)
class Asked:
    """What was asked of the ranks.

    max_failures: `cluster.max_failures`; move: why they were asked to save and end, if they were
    stop: whether somebody stopped the run; saved: whether the ranks saved and ended because they were asked to
    """

    max_failures: int
    move: Move | None = None
    stop: bool = False
    saved: bool = False


@dataclass(frozen=True)
class Restart:
    """Ray starts the ranks again on the same nodes."""


@dataclass(frozen=True)
class Relocate:
    """The driver looks for other nodes for the ranks. excused: whether the attempt that ended counts as no failure"""

    reason: str
    excused: bool


@dataclass(frozen=True)
class Shrink:
    """The driver starts the ranks again with less in memory. cause: the event of the rank that ran out of memory"""

    cause: Event


@dataclass(frozen=True)
class End:
    """Training is over.

    fault: `user`: a person can put the cause right; `training`: any other failure; None: no failure
    reason: the cause in a rank's own words; empty where no rank told it
    """

    fault: Literal["user", "training"] | None = None
    reason: str = ""


Decision = Restart | Relocate | Shrink | End


def decide(events: Sequence[Event], error: BaseException | None, asked: Asked) -> Decision:
    """Decide how training continues.

    events: all of this launch, the oldest first; error: what ended the ranks, None where they ended by themselves
    """
    if (fatal := first_of(events, EventKind.FATAL)) is not None:
        return End("user" if fatal["data"]["cause"] == "user" else "training", fatal["message"])
    if error is None:
        leaves = asked.move is not None and asked.saved and not asked.stop
        return Relocate(asked.move.reason, excused=True) if leaves and asked.move else End()
    if (short := unanswered(events, EventKind.RANK_OUT_OF_MEMORY, EventKind.OUT_OF_MEMORY)) is not None:
        return Shrink(short)
    too_often = failures_left(events, asked.max_failures) < 0
    if (lost := unanswered(events, EventKind.PLACES_LOST, EventKind.MOVED)) is not None:
        excused = asked.move is not None and asked.move.kind == "preempted"
        if asked.stop or (too_often and not excused):
            return End("training", lost["message"])
        return Relocate(lost["message"], excused)
    return End("training") if too_often else Restart()


def failures_left(events: Sequence[Event], max_failures: int) -> int:
    """How many more attempts may fail. -1 when one too many has failed.

    Each attempt that has begun counts as failed, unless an event excuses it: nobody asks while ranks train.
    """
    attempts = len([event for event in events if event["kind"] == EventKind.ATTEMPT])
    return max_failures - (attempts - len([event for event in events if is_excused(event)]))


def is_excused(event: Event) -> bool:
    """Whether this event excuses an attempt: it ran out of memory, or saved and moved."""
    kind = event["kind"]
    return kind == EventKind.OUT_OF_MEMORY or (kind == EventKind.MOVED and bool(event["data"]["excused"]))


def unanswered(events: Sequence[Event], question: EventKind, answer: EventKind) -> Event | None:
    """The newest event of the kind `question`, unless one of the kind `answer` came after it."""
    newest = next((event for event in reversed(events) if event["kind"] in (question, answer)), None)
    return newest if newest is not None and newest["kind"] == question else None


def first_of(events: Sequence[Event], kind: EventKind) -> Event | None:
    """The oldest event of a kind."""
    return next((event for event in events if event["kind"] == kind), None)

"""What happens after the ranks of a fit ended: one pure decision, which Ray's controller and the driver carry out.

Everything it goes by is an event of this launch in the registry, so it comes out the same in either process, and after
either was restarted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gemfleet.cluster.registry.event_kinds import EventKind

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Move:
    """Why the ranks save and end now. kind: a node with ranks is being drained, or there is room for more ranks."""

    kind: Literal["preempted", "grown"]
    reason: str


@dataclass(frozen=True)
class Asked:
    """What was asked of the ranks.

    max_failures: `cluster.max_failures`; move: what they were asked to save and end for; stop: somebody stopped the run
    saved: the ranks saved and ended because they were asked to
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
    """The driver looks for other places. excused: the attempt that ended is no failure."""

    reason: str
    excused: bool


@dataclass(frozen=True)
class Shrink:
    """The driver starts the ranks again with less in memory. cause: the event of the rank that ran out of it."""

    cause: Event


@dataclass(frozen=True)
class End:
    """Training is over.

    fault: `user`: a person can put the cause right; `training`: anything else; None: training came to its end
    reason: the cause in a rank's own words, empty where no rank told it
    """

    fault: Literal["user", "training"] | None = None
    reason: str = ""


Decision = Restart | Relocate | Shrink | End


def decide(events: Sequence[Event], error: BaseException | None, asked: Asked) -> Decision:
    """How training goes on.

    events: of this launch, the oldest first, the one of the attempt that ended among them
    error: what ended the ranks; None where they ended by themselves
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
    """How many more attempts may fail; -1 when one too many has failed.

    An attempt counts when it begins, as each but the last one has failed. One that ran out of memory is excused, and so
    is one that saved and moved elsewhere.
    """
    attempts = len([event for event in events if event["kind"] == EventKind.ATTEMPT])
    return max_failures - (attempts - len([event for event in events if is_excused(event)]))


def is_excused(event: Event) -> bool:
    """Whether this event says that an attempt ended for a reason which is no failure."""
    kind = event["kind"]
    return kind == EventKind.OUT_OF_MEMORY or (kind == EventKind.MOVED and bool(event["data"]["excused"]))


def unanswered(events: Sequence[Event], question: EventKind, answer: EventKind) -> Event | None:
    """The newest event of the kind `question`, unless one of the kind `answer` came after it."""
    newest = next((event for event in reversed(events) if event["kind"] in (question, answer)), None)
    return newest if newest is not None and newest["kind"] == question else None


def first_of(events: Sequence[Event], kind: EventKind) -> Event | None:
    """The oldest event of a kind."""
    return next((event for event in events if event["kind"] == kind), None)

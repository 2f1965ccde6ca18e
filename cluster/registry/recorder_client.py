"""The recorder of a run as ranks, the driver, the store and Ray's controller see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..head import HeadActor, start_on_head
from .event_kinds import EventKind
from .run_recorder import Points, Record, RunRecorder
from .run_records import RunState

WAITS = "waits"  # the calls that wait have a thread of their own


class RecorderClient:
    """Picklable. Each method runs on the head and raises what it raises there.

    StoreError when the head stays unreachable. A call may run twice when the recorder dies meanwhile; every method
    allows that.
    """

    def __init__(self, actor: HeadActor) -> None:
        self.actor = actor

    def push(self, rank: int, batch: Sequence[Record], who: Record, mark: str = "") -> bool:
        """See `RunRecorder.push`."""
        return bool(self.actor.call("push", rank, batch, who, mark))

    def training(self, seconds: float) -> Any:
        """A reference that is there when `RunRecorder.await_training` returns."""
        again = {"concurrency_group": WAITS, "max_task_retries": -1}  # a restarted recorder is asked anew
        return self.actor.handle.await_training.options(**again).remote(seconds)

    def pause(self, paused: bool) -> None:
        """See `RunRecorder.pause`."""
        self.actor.call("pause", paused)

    def transition(self, state: RunState, reason: str = "") -> None:
        """Moves the run to this state. On a full disk the state stays what it is."""
        self.actor.call("transition", str(state), reason)

    def event(self, kind: EventKind, message: str, data: Mapping[str, Any] | None = None) -> None:
        """Appends an event to the run."""
        self.actor.call("event", str(kind), message, data)

    def phases(self, line: Record) -> None:
        """See `RunRecorder.phases`."""
        self.actor.call("phases", line)

    def launch_events(self) -> list[dict[str, Any]]:
        """The events since the run's newest launch, the oldest first."""
        found: list[dict[str, Any]] = self.actor.call("launch_events")
        return found

    def snapshot(self) -> dict[str, Any]:
        """See `RunRecorder.snapshot`."""
        found: dict[str, Any] = self.actor.call("snapshot")
        return found

    def save_stacks(self, rank: int, generation: int, phase: str, seconds: float, stacks: str) -> None:
        """See `RunRecorder.save_stacks`."""
        self.actor.call("save_stacks", rank, generation, phase, seconds, stacks)

    def checkpoint_committed(
        self, step: int, path: str, size: int, generation: int, removed: Sequence[int], seconds: float | None = None
    ) -> None:
        """See `RunRecorder.checkpoint_committed`."""
        self.actor.call("checkpoint_committed", step, path, size, generation, removed, seconds)

    def flush(self) -> None:
        """Everything taken so far is on disk when this returns."""
        self.actor.call("flush")


def start_recorder(home: Path, run_id: str, points: Points) -> RecorderClient:
    """The recorder of a run that is in the registry already, on the head. Returns while it starts.

    points: see `RunRecorder`
    """
    name = f"gemfleet-recorder-{run_id}"
    # One thread: records of one rank must be written in the order they were pushed.
    return RecorderClient(start_on_head(RunRecorder, name, str(home), run_id, points, threads=1, waits=WAITS))

"""The head's side of a running run: takes what ranks report, and writes it to registry, logs and TensorBoard files.

Each run has one such actor. All that it knows is on disk or comes again, so a restarted one goes on.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import DiskFull
from ..phases import PHASES, keep_phases
from ..private import keep_private
from ..redaction import clean_text
from .event_kinds import EventKind
from .record_batch import Batch, BatchLog
from .run_registry import RunRegistry, RunState

Record = Mapping[str, Any]
Points = Callable[[Record], Iterable[tuple[str, float]]]


class RunRecorder:
    """Writes below `home`: `gemfleet.db`, and `runs/<run id>/{logs,runs}`.

    points: TensorBoard's tags and values of a record
    """

    def __init__(self, home: str, run_id: str, points: Points = lambda record: ()) -> None:
        keep_private()
        self._run_id, self._points = run_id, points
        self._registry = RunRegistry(Path(home) / "gemfleet.db")
        self._folder = Path(home) / "runs" / run_id
        (self._folder / "logs").mkdir(parents=True, exist_ok=True)
        self._board: Any = None
        self._paused = False
        self._trains = threading.Event()
        self._counted: set[int] = set()  # ranks whose log this process has counted, see `count_log`
        PHASES.enter("serves")
        self.phases(PHASES.taken("recorder"))

    def push(self, rank: int, batch: Sequence[Record], who: Record, mark: str = "") -> bool:
        """Takes one rank's records. Returns whether the rank should save and end, because the run is to stop or pause.

        batch: records of kind `step` and `eval` (metrics), `log` (a line), `event`, `result` and `phases`
        who:   the rank's node, address and pid
        mark:  the batch's name. A rank sends a batch again when its answer was lost; it is not written twice.
        """
        sorted_out = Batch.sort(batch)
        if sorted_out.metrics:
            self._trains.set()
        log = BatchLog(self._folder / "logs", f"rank-{rank}", sorted_out.lines)
        if rank not in self._counted:
            self._registry.count_log(self._run_id, log)
            self._counted.add(rank)
        if self._registry.keep_batch(self._run_id, rank, mark, sorted_out, who, log):
            for line in sorted_out.phases:
                self.phases(line)
            if sorted_out.metrics:
                with suppress(OSError):  # last, outside the transaction: its import takes seconds
                    self._write_board(sorted_out.metrics)
        return self._paused or self._registry.stop_requested(self._run_id)

    def await_training(self, seconds: float) -> None:
        """Returns when a rank has reported its first step or evaluation, or after `seconds`."""
        self._trains.wait(seconds)

    def pause(self, paused: bool) -> None:
        """Says whether the ranks shall save a checkpoint and end, so that the run goes on elsewhere or with more ranks.

        It is kept in memory only; the driver says it again as long as it holds.
        """
        self._paused = paused

    def transition(self, state: str, reason: str = "") -> None:
        """Moves the run to this state. On a full disk the state stays what it is."""
        with suppress(DiskFull):  # training goes on; for its own transitions the driver waits for room
            self._registry.transition(self._run_id, RunState(state), reason)

    def event(self, kind: str, message: str, data: Record | None = None) -> None:
        """Appends an event to the run."""
        self._registry.add_event(self._run_id, kind, message, data)

    def phases(self, line: Record) -> None:
        """Keeps the phases of one process for the run's trace, see `Phases.taken`."""
        keep_phases(self._folder, line)

    def checkpoint_committed(
        self, step: int, path: str, size: int, generation: int, removed: Sequence[int], seconds: float | None = None
    ) -> None:
        """Notes a commit.

        seconds: from the first file to the manifest; removed: steps that retention took away
        """
        self._registry.add_checkpoint(self._run_id, step, path, size, generation, seconds)
        for old in removed:
            self._registry.remove_checkpoint(self._run_id, old)

    def save_stacks(self, rank: int, generation: int, phase: str, seconds: float, stacks: str) -> None:
        """Keeps the stacks of a rank that hangs in `logs/stacks-<attempt>-rank-<n>.txt`, and appends an event.

        phase: what the rank was doing, without progress for `seconds`
        """
        name = f"stacks-{generation}-rank-{rank}.txt"
        (self._folder / "logs" / name).write_text(clean_text(stacks), encoding="utf-8")
        message = f"rank {rank} made no progress for {seconds:.0f} s ({phase}); its stacks are in logs/{name}"
        self._registry.add_event(
            self._run_id, EventKind.HANG, message, {"rank": rank, "phase": phase, "seconds": seconds}
        )

    def launch_events(self) -> list[dict[str, Any]]:
        """The events since the run's newest launch, the oldest first."""
        return self._registry.launch_events(self._run_id)

    def snapshot(self) -> dict[str, Any]:
        """What the driver needs: state, reason, newest step and evaluation, ranks, hangs, and the result once known."""
        run = self._registry.get_run(self._run_id)
        events = self.launch_events()
        results = [event["data"] for event in events if event["kind"] == EventKind.RESULT]
        return {
            "state": str(run.state),
            "reason": run.reason,
            "stop_requested": run.stop_requested,
            "step": self._registry.latest_metrics(self._run_id, "step"),
            "eval": self._registry.latest_metrics(self._run_id, "eval"),
            "ranks": self._registry.ranks(self._run_id),
            "hangs": [event for event in events if event["kind"] == EventKind.HANG],
            "result": results[-1] if results else None,
        }

    def flush(self) -> None:
        """Everything taken so far is on disk when this returns."""
        if self._board is not None:
            self._board.flush()

    def _write_board(self, records: Sequence[Record]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if self._board is None:
            name = f"{time.strftime('%b%d_%H-%M-%S')}_{socket.gethostname()}"
            self._board = EventFileWriter(str(self._folder / "runs" / name))
        for record in records:
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in self._points(record)]
            event = Event(step=record["step"], wall_time=record.get("time", time.time()), summary=Summary(value=values))
            self._board.add_event(event)
        self._board.flush()

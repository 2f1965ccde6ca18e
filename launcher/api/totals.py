"""What a run has done so far, in sums that are kept up to date by reading only what is new."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.cluster.registry.registry_reader import RegistryReader
from gemfleet.cluster.registry.run_registry import Run, RunState

BLOCK_STEPS = 1000
PAGE_ROWS = 1000
SCRAPE_SECONDS = 0.02  # for what is new since the scrape before; a long history is read beside, in the background


@dataclass
class Totals:
    """Of one run. A step that was trained again after a restart counts once.

    tokens, seconds: of steps of BLOCK_STEPS each, so that a replaced record costs reading its block again
    events: by kind; restarts are `restarting`
    """

    next_step: int | None = 0  # where reading goes on; None: all blocks have been read
    next_event: int = 0
    dirty: set[int] = field(default_factory=set)
    blocks: dict[int, tuple[float, float]] = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)
    saved_bytes: float = 0.0
    saved_seconds: float = 0.0

    @property
    def tokens(self) -> float:
        return sum(tokens for tokens, _ in self.blocks.values())

    @property
    def step_seconds(self) -> float:
        return sum(seconds for _, seconds in self.blocks.values())

    def count(self, event: Mapping[str, Any]) -> None:
        data = event["data"]
        restarts = event["kind"] == EventKind.STATE and data.get("state") == RunState.RESTARTING
        self.events["restarting" if restarts else event["kind"]] += 1
        if event["kind"] == EventKind.CHECKPOINT:
            self.saved_bytes += data.get("bytes") or 0
            self.saved_seconds += data.get("seconds") or 0.0


class RunTotals:
    """The totals of the runs that are asked for. Safe in several threads."""

    def __init__(self, reader: RegistryReader) -> None:
        self._reader = reader
        self._lock = threading.Lock()
        self._known: dict[tuple[str, float], Totals] = {}
        self._position = 0  # of the last metrics record whose block was marked
        self._background: threading.Thread | None = None

    def of(self, runs: Sequence[Run]) -> dict[str, Totals]:
        """By run id; without a run whose history is still being read, which may take seconds once."""
        if self._advance(runs, SCRAPE_SECONDS):
            self._read_on(runs)
        with self._lock:
            found = {run.id: self._known.get((run.id, run.created_at)) for run in runs}
            return {run_id: totals for run_id, totals in found.items() if totals and totals.next_step is None}

    def _read_on(self, runs: Sequence[Run]) -> None:
        def work() -> None:
            while self._advance(runs, SCRAPE_SECONDS):
                time.sleep(0.01)  # a scrape may take the lock

        if self._background is None or not self._background.is_alive():
            self._background = threading.Thread(target=work, name="run-totals", daemon=True)
            self._background.start()

    def _advance(self, runs: Sequence[Run], seconds: float) -> bool:
        """Read for so long at most; whether something is left."""
        deadline = time.monotonic() + seconds
        with self._lock:
            keys = [(run.id, run.created_at) for run in runs]
            self._known = {key: self._known.get(key) or Totals() for key in keys}
            self._mark_new(deadline)
            read = [self._read(run_id, totals, deadline) for (run_id, _), totals in self._known.items()]
            return not all(read)

    def _mark_new(self, deadline: float) -> None:
        """Blocks that were read and have a new record since."""
        if all(totals.next_step == 0 for totals in self._known.values()):
            self._position = self._reader.head().metric
            return
        of_run = {run_id: totals for (run_id, _), totals in self._known.items()}
        while time.monotonic() < deadline and (rows := self._reader.new_steps(self._position, PAGE_ROWS)):
            for position, run_id, step in rows:
                self._position = position
                if (totals := of_run.get(run_id)) is not None:
                    totals.dirty.add(step // BLOCK_STEPS)

    def _read(self, run_id: str, totals: Totals, deadline: float) -> bool:
        """Whether all was read before the deadline."""
        while events := self._reader.events(run_id, totals.next_event, PAGE_ROWS):
            for event in events:
                totals.count(event)
            totals.next_event = events[-1]["seq"]
            if time.monotonic() > deadline:
                return False
        while totals.next_step is not None:
            step = self._reader.next_step(run_id, totals.next_step)
            if step is not None:
                totals.dirty.add(step // BLOCK_STEPS)
            totals.next_step = None if step is None else (step // BLOCK_STEPS + 1) * BLOCK_STEPS
            self._sum(run_id, totals)
            if time.monotonic() > deadline:
                return totals.next_step is None
        self._sum(run_id, totals)
        return True

    def _sum(self, run_id: str, totals: Totals) -> None:
        while totals.dirty:
            block = totals.dirty.pop()
            totals.blocks[block] = self._reader.steps_total(run_id, block * BLOCK_STEPS, (block + 1) * BLOCK_STEPS)

"""Questions about runs that the registry and its reader answer alike."""

from __future__ import annotations

import json
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UnknownRun
from .event_kinds import EventKind
from .run_records import SELECT_RUNS, Run, RunState

KINDS = ("eval", "step")  # of metrics records
NO_LIMIT = -1  # SQLite's own word for it


class RunQueries(ABC):
    """Each answer shows one moment of the registry at `path`. Rows are dictionaries of the table's columns."""

    path: Path
    _has_tags = False

    @abstractmethod
    def _query(self, query: str, values: Sequence[Any]) -> list[sqlite3.Row]:
        """All rows of one statement."""

    def run(self, run_id: str) -> Run | None:
        """The run of this id; None when there is none."""
        rows = self._query(f"{self._select_runs()} WHERE id = ?", (run_id,))
        return Run.from_row(rows[0]) if rows else None

    def get_run(self, run_id: str) -> Run:
        """As `run`; UnknownRun when there is none."""
        run = self.run(run_id)
        if run is None:
            raise UnknownRun(f"there is no run {run_id!r}; `gemfleet runs` lists them")
        return run

    def find_run(self, prefix: str) -> Run:
        """The run of this id, the newest run for `latest`, or the only run whose id begins so. UnknownRun otherwise."""
        ids = [row["id"] for row in self._query("SELECT id FROM runs ORDER BY created_at DESC, rowid DESC", ())]
        if prefix == "latest" and ids:
            return self.get_run(ids[0])
        matching = [prefix] if prefix in ids else [i for i in ids if i.startswith(prefix)]
        if len(matching) != 1:
            found = f"{len(matching)} runs begin with" if matching else "there is no run"
            raise UnknownRun(f"{found} {prefix!r}; `gemfleet runs` lists them{self._remedy(prefix)}")
        return self.get_run(matching[0])

    def _remedy(self, run_id: str) -> str:
        """For a run that has a folder but no row."""
        there = run_id not in ("", "latest") and "/" not in run_id and (self.path.parent / "runs" / run_id).is_dir()
        return ", and `gemfleet repair` brings a run back that has a folder" if there else ""

    def list_runs(
        self,
        limit: int = 50,
        after: str | None = None,
        state: RunState | None = None,
        archived: bool | None = None,
        tags: Mapping[str, str | None] | None = None,
    ) -> list[Run]:
        """The newest first.

        after:    begin behind the run of this id
        state:    only runs in this state
        archived: only runs that are archived, or only those that are not; None: both
        tags:     only runs that have all these tags; a value of None is any
        """
        where, values = ["1 = 1"], list[Any]()
        if state is not None:
            where.append("state = ?")
            values.append(str(state))
        if after is not None:
            where.append("(created_at, rowid) < (SELECT created_at, rowid FROM runs WHERE id = ?)")
            values.append(after)
        select = self._select_runs()
        if archived is not None and (archived or self._has_tags):
            where.append(("archived" if archived else "NOT archived") if self._has_tags else "0")
        for key, value in (tags or {}).items():
            tagged = "EXISTS (SELECT 1 FROM tags WHERE run_id = runs.id AND key = ? AND ifnull(value = ?, 1))"
            where.append(tagged if self._has_tags else "? <> ?")  # no run has this key
            values += [key, value] if self._has_tags else [key, key]
        query = f"{select} WHERE {' AND '.join(where)} ORDER BY created_at DESC, rowid DESC LIMIT ?"
        return [Run.from_row(row) for row in self._query(query, (*values, limit))]

    def _select_runs(self) -> str:
        """`SELECT_RUNS`, or less where a full disk has kept the file at a version without tags."""
        if not self._has_tags:
            self._has_tags = bool(self._query("SELECT 1 FROM sqlite_master WHERE name = 'archived'", ()))
        return SELECT_RUNS if self._has_tags else "SELECT * FROM runs"

    def stop_requested(self, run_id: str) -> bool:
        """Whether somebody asked the run to stop. UnknownRun when there is none."""
        return self.get_run(run_id).stop_requested

    def launch_seq(self, run_id: str) -> int:
        """`seq` of the event of the run's newest launch; later events belong to that launch. 0 when there is none."""
        query = "SELECT MAX(seq) AS seq FROM events WHERE run_id = ? AND kind = ? AND data LIKE ?"
        (row,) = self._query(query, (run_id, EventKind.STATE, f'%"{RunState.QUEUED}"%'))
        return int(row["seq"] or 0)

    def events(self, run_id: str, after: int = 0, limit: int = NO_LIMIT) -> list[dict[str, Any]]:
        """The first events of a run with `seq` above `after`, the oldest first."""
        query = "SELECT * FROM events WHERE run_id = ? AND seq > ? ORDER BY seq LIMIT ?"
        return [event_of(row) for row in self._query(query, (run_id, after, limit))]

    def launch_events(self, run_id: str) -> list[dict[str, Any]]:
        """The events since the run's newest launch, the oldest first. Those of earlier launches no longer count."""
        return self.events(run_id, self.launch_seq(run_id))

    def last_event(self, run_id: str, *kinds: EventKind) -> dict[str, Any] | None:
        """The newest event of these kinds; None when there is none."""
        marks = ", ".join("?" for _ in kinds)
        query = f"SELECT * FROM events WHERE run_id = ? AND kind IN ({marks}) ORDER BY seq DESC LIMIT 1"
        rows = self._query(query, (run_id, *kinds))
        return event_of(rows[0]) if rows else None

    def end_figures(self, run_id: str) -> dict[str, Any]:
        """The figures that the registry kept when the run ended, see `figures_of`; empty while the run goes on."""
        event = self.last_event(run_id, EventKind.STATE)
        return {} if event is None else dict(event["data"].get("figures", {}))

    def metrics(
        self, run_id: str, since_step: int = 0, kind: str | None = None, limit: int = NO_LIMIT
    ) -> list[dict[str, Any]]:
        """The first records of this step and later, in the order of steps. `kind`: `step` or `eval`; None: both."""
        query = (
            "SELECT step, kind, record FROM metrics WHERE run_id = ? AND kind = ? AND step >= ? ORDER BY step LIMIT ?"
        )
        rows: list[sqlite3.Row] = []
        for one in KINDS if kind is None else (kind,):  # each in the order of the table's own index
            rows += self._query(query, (run_id, one, since_step, limit))
        rows.sort(key=lambda row: (row["step"], row["kind"]))
        return [json.loads(row["record"]) for row in (rows if limit == NO_LIMIT else rows[:limit])]

    def latest_metrics(self, run_id: str, kind: str) -> dict[str, Any] | None:
        """The record of the highest step; None when there is none."""
        query = "SELECT record FROM metrics WHERE run_id = ? AND kind = ? ORDER BY step DESC LIMIT 1"
        rows = self._query(query, (run_id, kind))
        return json.loads(rows[0]["record"]) if rows else None

    def checkpoints(self, run_id: str, *, newest_first: bool = False) -> list[dict[str, Any]]:
        """The committed checkpoints of a run by step."""
        order = "DESC" if newest_first else "ASC"
        query = f"SELECT * FROM checkpoints WHERE run_id = ? ORDER BY step {order}"
        return [dict(row) for row in self._query(query, (run_id,))]

    def ranks(self, run_id: str) -> list[dict[str, Any]]:
        """The ranks that gave a sign since they started, by rank."""
        return [dict(row) for row in self._query("SELECT * FROM ranks WHERE run_id = ? ORDER BY rank", (run_id,))]


def event_of(row: sqlite3.Row) -> dict[str, Any]:
    """A row of `events` with its data read from JSON."""
    return {**dict(row), "data": json.loads(row["data"])}

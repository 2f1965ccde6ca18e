"""Reads the registry in pages and increments, for whoever answers many small questions.

Each thread keeps one connection. Reading never waits for a writer (WAL). Positions only grow, and a row becomes visible
only after all rows of lower positions, because writers take turns. So "everything above the last position I saw"
neither loses a row nor repeats one.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .event_kinds import EventKind
from .run_database import open_to_read, reads_alone, told_in_a_sentence
from .run_queries import RunQueries, event_of
from .run_records import Run, RunState


@dataclass(frozen=True)
class Mark:
    """How far a reader has come: the number of the last event, and the position of the last metrics record."""

    event: int = 0
    metric: int = 0

    def covers(self, other: Mark) -> bool:
        """Whether a reader at this mark has seen everything up to `other`."""
        return self.event >= other.event and self.metric >= other.metric

    def joined(self, other: Mark) -> Mark:
        """The later of both, in events and in metrics."""
        return Mark(max(self.event, other.event), max(self.metric, other.metric))


class RegistryReader(RunQueries):
    """Reads the registry at `path`, which exists. Safe in several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()

    def restarts(self, run_id: str) -> int:
        """How many attempts there were after the first."""
        query = (
            "SELECT COUNT(*) AS count FROM events WHERE run_id = ? AND kind = ? AND json_extract(data, '$.state') = ?"
        )
        return int(self._query(query, (run_id, EventKind.STATE, RunState.RESTARTING))[0]["count"])

    def event_count(self, run_id: str, kind: EventKind) -> int:
        """How many events of a kind a run has."""
        query = "SELECT COUNT(*) AS count FROM events WHERE run_id = ? AND kind = ?"
        return int(self._query(query, (run_id, kind))[0]["count"])

    def event_sum(self, run_id: str, kind: EventKind, field: str) -> float:
        """The sum of a numeric field over all events of a kind; an event that lacks it adds nothing."""
        query = "SELECT SUM(json_extract(data, ?)) AS total FROM events WHERE run_id = ? AND kind = ?"
        return float(self._query(query, (f"$.{field}", run_id, kind))[0]["total"] or 0.0)

    def thinned(self, run_id: str, kind: str, count: int) -> Iterator[dict[str, Any]]:
        """At most `count` records of a kind, spread evenly over all steps, with the first and the newest."""
        ends = "SELECT (SELECT MIN(step) {0}) AS first, (SELECT MAX(step) {0}) AS last"
        of_run = "FROM metrics WHERE run_id = ? AND kind = ?"
        (row,) = self._query(ends.format(of_run), (run_id, kind, run_id, kind))
        if row["first"] is None:
            return
        first, last, at = row["first"], row["last"], -1
        query = f"SELECT step, record {of_run} AND step >= ? ORDER BY step LIMIT 1"
        for number in range(count):
            wanted = max(at + 1, first + (last - first) * number // max(1, count - 1))
            found = self._query(query, (run_id, kind, wanted))
            if not found:
                return
            at = found[0]["step"]
            yield json.loads(found[0]["record"])

    def steps_total(self, run_id: str, since: int, below: int) -> tuple[float, float]:
        """Sums of `tokens` and of `step_seconds` over the steps of [since, below)."""
        query = (
            "SELECT TOTAL(json_extract(record, '$.tokens')) AS tokens, "
            "TOTAL(json_extract(record, '$.step_seconds')) AS seconds "
            "FROM metrics WHERE run_id = ? AND kind = 'step' AND step >= ? AND step < ?"
        )
        (row,) = self._query(query, (run_id, since, below))
        return row["tokens"], row["seconds"]

    def next_step(self, run_id: str, since: int) -> int | None:
        """The first step at or after `since` that has a record."""
        query = "SELECT step FROM metrics WHERE run_id = ? AND kind = 'step' AND step >= ? ORDER BY step LIMIT 1"
        rows = self._query(query, (run_id, since))
        return rows[0]["step"] if rows else None

    def new_steps(self, after: int, limit: int) -> list[tuple[int, str, int]]:
        """(position, run, step) of the first `limit` records of all runs with position > `after`, by position."""
        query = "SELECT rowid AS position, run_id, step FROM metrics WHERE rowid > ? ORDER BY rowid LIMIT ?"
        return [(row["position"], row["run_id"], row["step"]) for row in self._query(query, (after, limit))]

    def head(self) -> Mark:
        """The newest positions of all runs."""
        query = "SELECT (SELECT MAX(seq) FROM events) AS event, (SELECT MAX(rowid) FROM metrics) AS metric"
        (row,) = self._query(query, ())
        return Mark(row["event"] or 0, row["metric"] or 0)

    def newest_events_begin(self, run_id: str, count: int) -> int:
        """The `seq` after which the run's newest `count` events follow; 0 when it has no more than these."""
        query = "SELECT seq FROM events WHERE run_id = ? ORDER BY seq DESC LIMIT 1 OFFSET ?"
        rows = self._query(query, (run_id, count))
        return rows[0]["seq"] if rows else 0

    def events_between(self, after: int, upto: int, run_id: str | None, limit: int) -> list[dict[str, Any]]:
        """The first `limit` events of all runs, or of one, with `after` < seq <= `upto`."""
        where, values = ("", ()) if run_id is None else ("run_id = ? AND ", (run_id,))
        query = f"SELECT * FROM events WHERE {where}seq > ? AND seq <= ? ORDER BY seq LIMIT ?"
        return [event_of(row) for row in self._query(query, (*values, after, upto, limit))]

    def metrics_between(self, after: int, upto: int, run_id: str | None, limit: int) -> list[dict[str, Any]]:
        """The first `limit` records with `after` < position <= `upto`, each as `position`, `run_id` and `record`."""
        where, values = ("", ()) if run_id is None else ("+run_id = ? AND ", (run_id,))
        query = (
            "SELECT rowid AS position, run_id, record FROM metrics "
            f"WHERE {where}rowid > ? AND rowid <= ? ORDER BY rowid LIMIT ?"
        )
        rows = self._query(query, (*values, after, upto, limit))
        return [{"position": r["position"], "run_id": r["run_id"], "record": json.loads(r["record"])} for r in rows]

    def metrics_span(self, run_id: str) -> tuple[int, int]:
        """Positions of a run's first and last record; (0, 0) when it has none. Other runs' may lie between them."""
        query = "SELECT MIN(rowid) AS first, MAX(rowid) AS last FROM metrics WHERE run_id = ?"
        (row,) = self._query(query, (run_id,))
        return row["first"] or 0, row["last"] or 0

    def waiting(self) -> list[dict[str, Any]]:
        """The runs that no cluster has admitted yet, the first one first: `id`, `since`, and what their claims say.

        A run that was just launched has made no claim; what an earlier launch of it claimed does not count.
        """
        query = (
            "SELECT runs.id, ifnull(queued_at, created_at) AS since, workers, cpus, gpus, kind FROM runs "
            "LEFT JOIN claims ON claims.run_id = runs.id AND state = ? "
            "WHERE state = ? OR (state = ? AND ifnull(admitted, 0) = 0) ORDER BY since, runs.id"
        )
        values = (RunState.PREFLIGHT, RunState.QUEUED, RunState.PREFLIGHT)
        return [dict(row) for row in self._query(query, values)]

    def states(self) -> dict[str, int]:
        """How many runs are in each state; a state without runs is left out."""
        rows = self._query("SELECT state, COUNT(*) AS count FROM runs GROUP BY state", ())
        return {row["state"]: row["count"] for row in rows}

    def runs_since(self, ended_after: float, limit: int) -> list[Run]:
        """The newest runs that have not ended, or ended after this time in seconds since the epoch."""
        where = "WHERE ended_at IS NULL OR ended_at > ? ORDER BY created_at DESC, rowid DESC LIMIT ?"
        query = f"{self._select_runs()} {where}"
        return [Run.from_row(row) for row in self._query(query, (ended_after, limit))]

    def _query(self, query: str, values: Sequence[Any]) -> list[sqlite3.Row]:
        with told_in_a_sentence(self.path):
            connection = self._connection()
            try:
                return connection.execute(query, values).fetchall()
            finally:
                if reads_alone(connection):  # on a full disk; to keep it would keep all writers out
                    connection.close()
                    del self._local.connection

    def _connection(self) -> sqlite3.Connection:
        """This thread's connection. It is made anew when a rebuilt registry has taken the file's place."""
        try:
            now = self.path.stat().st_ino
        except FileNotFoundError:
            now = 0
        if getattr(self._local, "file", now) != now and hasattr(self._local, "connection"):
            self._local.connection.close()
            del self._local.connection
        if not hasattr(self._local, "connection"):
            self._local.connection, self._local.file = open_to_read(self.path), now
        connection: sqlite3.Connection = self._local.connection
        return connection

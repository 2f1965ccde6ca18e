"""Pages and increments of the registry, for whoever answers many small questions: one lasting connection a thread.

Reading never waits for a writer (WAL). Positions only grow, and a row becomes visible only after all rows of lower
positions (writers take turns), so "everything above the last position I saw" neither loses nor repeats a row.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .run_registry import Run, RunState

BUSY_SECONDS = 30.0


@dataclass(frozen=True)
class Mark:
    """How far a reader has come: the number of the last event, and the position of the last metrics record."""

    event: int = 0
    metric: int = 0

    def covers(self, other: Mark) -> bool:
        """Whether a reader here has seen everything up to `other`."""
        return self.event >= other.event and self.metric >= other.metric

    def joined(self, other: Mark) -> Mark:
        """The later of both, in events and in metrics."""
        return Mark(max(self.event, other.event), max(self.metric, other.metric))


class RegistryReader:
    """Reads the registry at `path`, which exists. Safe in several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()

    def run(self, run_id: str) -> Run | None:
        rows = self._query("SELECT * FROM runs WHERE id = ?", (run_id,))
        return Run.from_row(rows[0]) if rows else None

    def runs(self, limit: int, after: str | None = None, state: RunState | None = None) -> list[Run]:
        """Newest first; with `after`, those that come after that run in the list."""
        where, values = ["1 = 1"], list[Any]()
        if state is not None:
            where.append("state = ?")
            values.append(str(state))
        if after is not None:
            where.append("(created_at, rowid) < (SELECT created_at, rowid FROM runs WHERE id = ?)")
            values.append(after)
        query = f"SELECT * FROM runs WHERE {' AND '.join(where)} ORDER BY created_at DESC, rowid DESC LIMIT ?"
        return [Run.from_row(row) for row in self._query(query, (*values, limit))]

    def events(self, run_id: str, after: int, limit: int) -> list[dict[str, Any]]:
        """Events of a run with `seq` above `after`, oldest first."""
        query = "SELECT * FROM events WHERE run_id = ? AND seq > ? ORDER BY seq LIMIT ?"
        return [_event(row) for row in self._query(query, (run_id, after, limit))]

    def last_event(self, run_id: str, kinds: Sequence[str]) -> dict[str, Any] | None:
        marks = ", ".join("?" for _ in kinds)
        query = f"SELECT * FROM events WHERE run_id = ? AND kind IN ({marks}) ORDER BY seq DESC LIMIT 1"
        rows = self._query(query, (run_id, *kinds))
        return _event(rows[0]) if rows else None

    def end_figures(self, run_id: str) -> dict[str, Any]:
        """What the run came to, kept when it ended; empty while it goes on. See `run_figures`."""
        event = self.last_event(run_id, ("state",))
        return {} if event is None else dict(event["data"].get("figures", {}))

    def restarts(self, run_id: str) -> int:
        """How many attempts there were after the first."""
        query = (
            "SELECT COUNT(*) AS count FROM events WHERE run_id = ? AND kind = 'state' "
            "AND json_extract(data, '$.state') = 'restarting'"
        )
        return int(self._query(query, (run_id,))[0]["count"])

    def event_count(self, run_id: str, kind: str) -> int:
        query = "SELECT COUNT(*) AS count FROM events WHERE run_id = ? AND kind = ?"
        return int(self._query(query, (run_id, kind))[0]["count"])

    def event_sum(self, run_id: str, kind: str, field: str) -> float:
        """Sum of a numeric field over all events of a kind; those that lack it add nothing."""
        query = "SELECT SUM(json_extract(data, ?)) AS total FROM events WHERE run_id = ? AND kind = ?"
        return float(self._query(query, (f"$.{field}", run_id, kind))[0]["total"] or 0.0)

    def metrics(self, run_id: str, since_step: int, kind: str | None, limit: int) -> list[dict[str, Any]]:
        """Records of this step and later, in the order of steps."""
        query = (
            "SELECT record FROM metrics WHERE run_id = ? AND step >= ? AND (? IS NULL OR kind = ?) "
            "ORDER BY step, kind LIMIT ?"
        )
        rows = self._query(query, (run_id, since_step, kind, kind, limit))
        return [json.loads(row["record"]) for row in rows]

    def latest_metrics(self, run_id: str, kind: str) -> dict[str, Any] | None:
        query = "SELECT record FROM metrics WHERE run_id = ? AND kind = ? ORDER BY step DESC LIMIT 1"
        rows = self._query(query, (run_id, kind))
        return json.loads(rows[0]["record"]) if rows else None

    def metric_sum(self, run_id: str, field: str) -> float:
        """Sum of a numeric field over all steps of a run."""
        query = "SELECT SUM(json_extract(record, ?)) AS total FROM metrics WHERE run_id = ? AND kind = 'step'"
        return float(self._query(query, (f"$.{field}", run_id))[0]["total"] or 0.0)

    def checkpoints(self, run_id: str) -> list[dict[str, Any]]:
        query = "SELECT * FROM checkpoints WHERE run_id = ? ORDER BY step DESC"
        return [dict(row) for row in self._query(query, (run_id,))]

    def ranks(self, run_id: str) -> list[dict[str, Any]]:
        return [dict(row) for row in self._query("SELECT * FROM ranks WHERE run_id = ? ORDER BY rank", (run_id,))]

    def head(self) -> Mark:
        """The newest positions of all runs."""
        query = "SELECT (SELECT MAX(seq) FROM events) AS event, (SELECT MAX(rowid) FROM metrics) AS metric"
        (row,) = self._query(query, ())
        return Mark(row["event"] or 0, row["metric"] or 0)

    def events_between(self, after: int, upto: int, run_id: str | None = None) -> list[dict[str, Any]]:
        """Events of all runs, or of one, with `after` < seq <= `upto`."""
        query = "SELECT * FROM events WHERE seq > ? AND seq <= ? AND (? IS NULL OR run_id = ?) ORDER BY seq"
        return [_event(row) for row in self._query(query, (after, upto, run_id, run_id))]

    def metrics_between(self, after: int, upto: int, run_id: str | None = None) -> list[dict[str, Any]]:
        """Records with `position` and `run_id` added, `after` < position <= `upto`."""
        query = (
            "SELECT rowid AS position, run_id, record FROM metrics "
            "WHERE rowid > ? AND rowid <= ? AND (? IS NULL OR run_id = ?) ORDER BY rowid"
        )
        rows = self._query(query, (after, upto, run_id, run_id))
        return [{"position": r["position"], "run_id": r["run_id"], "record": json.loads(r["record"])} for r in rows]

    def _query(self, query: str, values: Sequence[Any]) -> list[sqlite3.Row]:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self._path, timeout=BUSY_SECONDS, isolation_level=None)
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA query_only = 1")
            self._local.connection = connection
        return connection.execute(query, values).fetchall()  # type: ignore[no-any-return]


def _event(row: sqlite3.Row) -> dict[str, Any]:
    return {**dict(row), "data": json.loads(row["data"])}

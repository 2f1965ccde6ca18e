"""What a running run reports to the registry: events, metrics, log lines, heartbeats and checkpoints."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..redaction import clean_text, redact
from .event_kinds import EventKind
from .record_batch import Batch, BatchLog
from .run_database import RunDatabase

Record = Mapping[str, Any]


class RunReports(RunDatabase):
    """Every method writes in one transaction: all of it or nothing."""

    def add_event(self, run_id: str, kind: str, message: str, data: Record | None = None) -> None:
        """Appends an event. Secrets are taken out of message and data."""
        with self.connect() as db:
            self._event(db, run_id, kind, message, data or {})

    def add_metrics(self, run_id: str, records: Sequence[Record]) -> None:
        """Adds records with `kind` (step or eval) and `step`. A record of the same kind and step is replaced.

        The number of a row always grows, even when its record replaces an older one: readers go on from the last
        number that they saw.
        """
        with self.connect() as db:
            self._metrics(db, run_id, records)

    def count_log(self, run_id: str, log: BatchLog) -> None:
        """Marks everything that lies in a log now as kept. Call it before the log's first batch."""
        with self.connect() as db:
            query = "INSERT OR IGNORE INTO logs (run_id, source, bytes) VALUES (?, ?, ?)"
            db.execute(query, (run_id, log.source, log.size()))

    def keep_batch(self, run_id: str, rank: int, mark: str, batch: Batch, who: Record, log: BatchLog) -> bool:
        """Keeps everything that came from a rank at once, and keeps it once. Returns whether the batch was new.

        mark: the batch's name. A batch with the mark of this rank's newest batch is not kept again. Empty: always kept.
        who:  `node`, `address` and `pid` of the rank, whose heartbeat this is
        log:  the file for the batch's lines. `count_log` counted it; what lies beyond the count is of a batch that was
              cut off, and is overwritten.
        """
        with self.connect() as db:
            new = not mark or mark != self._newest_received(db, run_id, rank)
            if new:
                for kind, message, data in batch.events:
                    self._event(db, run_id, kind, message, data)
                self._metrics(db, run_id, batch.metrics)
                self._append(db, run_id, log)
            self._heartbeat(db, run_id, rank, who, mark)
        return new

    def heartbeat(self, run_id: str, rank: int, node: str, address: str, pid: int, received: str = "") -> None:
        """Notes that a rank lives. `received`: the mark of its newest batch that was kept."""
        with self.connect() as db:
            self._heartbeat(db, run_id, rank, {"node": node, "address": address, "pid": pid}, received)

    def forget_ranks(self, run_id: str) -> None:
        """Call it before ranks start anew: there may be fewer of them, on other nodes."""
        with self.connect() as db:
            db.execute("DELETE FROM ranks WHERE run_id = ?", (run_id,))

    def add_checkpoint(
        self, run_id: str, step: int, path: str, size: int, generation: int, seconds: float | None = None
    ) -> None:
        """Adds a checkpoint whose manifest is on disk already. `seconds`: from its first file to its commit.

        The first call for a step also appends an event; a repeated call does not.
        """
        with self.connect() as db:
            known = db.execute("SELECT 1 FROM checkpoints WHERE run_id = ? AND step = ?", (run_id, step)).fetchone()
            db.execute(
                "INSERT OR REPLACE INTO checkpoints (run_id, step, path, bytes, created_at, generation, seconds) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (run_id, step, path, size, time.time(), generation, seconds),
            )
            if known is None:
                took = "" if seconds is None else f", {seconds:.1f} s"
                message = f"checkpoint-{step} is on the head ({size:,} bytes{took})"
                data = {"step": step, "bytes": size, "seconds": seconds}
                self._event(db, run_id, EventKind.CHECKPOINT, message, data)

    def remove_checkpoint(self, run_id: str, step: int) -> None:
        """Forgets a checkpoint. One that is not there is forgotten already."""
        with self.connect() as db:
            db.execute("DELETE FROM checkpoints WHERE run_id = ? AND step = ?", (run_id, step))

    def _event(self, db: sqlite3.Connection, run_id: str, kind: str, message: str, data: Record) -> None:
        values = (run_id, time.time(), kind, clean_text(message), _json(redact(dict(data))))
        db.execute("INSERT INTO events (run_id, time, kind, message, data) VALUES (?, ?, ?, ?, ?)", values)

    def _metrics(self, db: sqlite3.Connection, run_id: str, records: Sequence[Record]) -> None:
        query = "SELECT MAX(COALESCE((SELECT last FROM numbers WHERE name = 'metrics'), 0), COALESCE(MAX(rowid), 0))"
        last = int(db.execute(f"{query} FROM metrics").fetchone()[0])
        rows = [
            (number, run_id, r["kind"], r["step"], r.get("time", time.time()), _json(r))
            for number, r in enumerate(records, last + 1)
        ]
        db.executemany(
            "INSERT OR REPLACE INTO metrics (rowid, run_id, kind, step, time, record) VALUES (?, ?, ?, ?, ?, ?)", rows
        )
        if rows:
            db.execute("INSERT OR REPLACE INTO numbers (name, last) VALUES ('metrics', ?)", (last + len(rows),))

    def _heartbeat(self, db: sqlite3.Connection, run_id: str, rank: int, who: Record, received: str) -> None:
        db.execute(
            "INSERT OR REPLACE INTO ranks (run_id, rank, node, address, pid, heartbeat, received) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (run_id, rank, who["node"], who["address"], who["pid"], time.time(), received),
        )

    def _newest_received(self, db: sqlite3.Connection, run_id: str, rank: int) -> str:
        row = db.execute("SELECT received FROM ranks WHERE run_id = ? AND rank = ?", (run_id, rank)).fetchone()
        return "" if row is None else str(row["received"])

    def _append(self, db: sqlite3.Connection, run_id: str, log: BatchLog) -> None:
        """Writes the lines before the count: if this process dies before the commit, the next batch overwrites them.

        A rebuilt registry has no count: all that lies in the log is then kept.
        """
        query = "SELECT bytes FROM logs WHERE run_id = ? AND source = ?"
        counted = db.execute(query, (run_id, log.source)).fetchone()
        kept = log.size() if counted is None else int(counted["bytes"])
        values = (run_id, log.source, log.append(kept))
        db.execute("INSERT OR REPLACE INTO logs (run_id, source, bytes) VALUES (?, ?, ?)", values)


def _json(record: Record) -> str:
    """JSON of a record. A value that JSON lacks, such as a NumPy number, becomes a number or a text."""
    return json.dumps(dict(record), default=lambda value: value.item() if hasattr(value, "item") else str(value))

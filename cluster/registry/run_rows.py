"""The rows of the registry of runs: what is written inside one transaction, which the caller began."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any

import psutil

from ..driver import ProcessIdentity
from ..errors import UnknownRun
from ..redaction import clean_text, redact
from .record_batch import BatchLog
from .run_database import RunDatabase
from .run_records import RunState


class RunRows(RunDatabase):
    """Each method writes, or reads, by a connection with a transaction."""

    def _drive(self, db: sqlite3.Connection, run_id: str, pid: int | None) -> None:
        """The process that carries the run out from now on; None: nobody knows."""
        started = None if pid is None else psutil.Process(pid).create_time()  # for a gemfleet of before `drivers`
        db.execute("UPDATE runs SET driver_pid = ?, driver_started = ? WHERE id = ?", (pid, started, run_id))
        db.execute("DELETE FROM drivers WHERE run_id = ?", (run_id,))
        if pid is not None:
            driver = ProcessIdentity.of(pid)
            db.execute(
                "INSERT INTO drivers (run_id, pid, boot, ticks) VALUES (?, ?, ?, ?)",
                (run_id, driver.pid, driver.boot, driver.ticks),
            )

    def _metrics(self, db: sqlite3.Connection, run_id: str, records: Sequence[Mapping[str, Any]]) -> None:
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

    def _heartbeat(self, db: sqlite3.Connection, run_id: str, rank: int, who: Mapping[str, Any], received: str) -> None:
        db.execute(
            "INSERT OR REPLACE INTO ranks (run_id, rank, node, address, pid, heartbeat, received) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (run_id, rank, who["node"], who["address"], who["pid"], time.time(), received),
        )

    def _newest_received(self, db: sqlite3.Connection, run_id: str, rank: int) -> str:
        row = db.execute("SELECT received FROM ranks WHERE run_id = ? AND rank = ?", (run_id, rank)).fetchone()
        return "" if row is None else str(row["received"])

    def _append(self, db: sqlite3.Connection, run_id: str, log: BatchLog) -> None:
        """The lines first: should this process be killed before the commit, the next one cuts them off again."""
        query = "SELECT bytes FROM logs WHERE run_id = ? AND source = ?"
        kept = int(db.execute(query, (run_id, log.source)).fetchone()["bytes"])
        values = (run_id, log.source, log.append(kept))
        db.execute("INSERT OR REPLACE INTO logs (run_id, source, bytes) VALUES (?, ?, ?)", values)

    def _state(self, db: sqlite3.Connection, run_id: str) -> RunState:
        row = db.execute("SELECT state FROM runs WHERE id = ?", (run_id,)).fetchone()
        if row is None:
            raise UnknownRun(f"there is no run {run_id!r}; `gemfleet runs` lists them")
        return RunState(row["state"])

    def _event(self, db: sqlite3.Connection, run_id: str, kind: str, message: str, data: Mapping[str, Any]) -> None:
        values = (run_id, time.time(), kind, clean_text(message), _json(redact(dict(data))))
        db.execute("INSERT INTO events (run_id, time, kind, message, data) VALUES (?, ?, ?, ?, ?)", values)


def _json(record: Mapping[str, Any]) -> str:
    """A value that JSON lacks, such as a NumPy number, must not keep a record from being kept."""
    return json.dumps(dict(record), default=lambda value: value.item() if hasattr(value, "item") else str(value))

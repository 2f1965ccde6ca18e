"""A damaged registry: whether it is one, and what of its rows can still be read."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

from .run_database import DAMAGED, open_to_read, told_in_a_sentence
from .run_records import RunState

TABLES = ("runs", "events", "metrics", "checkpoints", "drivers", "logs", "ranks")
JSON_COLUMNS = {"events": "data", "metrics": "record"}


def is_whole(path: Path) -> bool:
    """Whether every page of the database can be read and all tables are there. ClusterError where nobody may look."""
    try:
        with closing(open_to_read(path)) as db:
            for table in TABLES[:4]:
                db.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchall()
            return [row[0] for row in db.execute("PRAGMA integrity_check")] == ["ok"]
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF in DAMAGED:
            return False
        with told_in_a_sentence(path):
            raise


def salvage(damaged: Path, into: Path) -> int:
    """Copy all rows that can be read into another registry, which has none; returns how many runs those are of."""
    with closing(sqlite3.connect(into, isolation_level=None)) as db:
        db.execute("BEGIN")
        for table in TABLES:
            columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
            for row in readable_rows(damaged, table):
                if _makes_sense(table, row):
                    _insert(db, table, {k: value for k, value in dict(row).items() if k in ("rowid", *columns)})
        begin_numbers_anew(db)
        db.execute("COMMIT")
        return int(db.execute("SELECT COUNT(*) FROM runs").fetchone()[0])


def readable_rows(damaged: Path, table: str) -> Iterator[sqlite3.Row]:
    """From the first row to the first that cannot be read, and from the last back to the last that cannot."""
    seen: set[int] = set()
    for order in ("ASC", "DESC"):
        with suppress(sqlite3.Error), closing(open_to_read(damaged)) as db:
            for row in db.execute(f"SELECT rowid AS rowid, * FROM {table} ORDER BY rowid {order}"):
                if row["rowid"] in seen:
                    break
                seen.add(row["rowid"])
                yield row


def begin_numbers_anew(db: sqlite3.Connection) -> None:
    """Numbers go on above any that a reader can have seen: above the milliseconds since 1970, of which more went by
    than records were ever written."""
    now = int(time.time() * 1000)
    db.execute("DELETE FROM sqlite_sequence WHERE name = 'events'")
    db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('events', ?)", (now,))
    db.execute("INSERT OR REPLACE INTO numbers (name, last) VALUES ('metrics', ?)", (now,))


def _insert(db: sqlite3.Connection, table: str, row: dict[str, object]) -> None:
    with suppress(sqlite3.IntegrityError):  # a value that is missing, or the same row twice
        marks = ", ".join("?" for _ in row)
        db.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))


def _makes_sense(table: str, row: sqlite3.Row) -> bool:
    """Damage can also leave a row that can be read and says nothing."""
    try:
        if table == "runs":
            RunState(row["state"])
        if table in JSON_COLUMNS:
            json.loads(row[JSON_COLUMNS[table]])
    except (ValueError, TypeError):
        return False
    return True

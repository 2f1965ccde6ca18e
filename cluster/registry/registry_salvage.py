"""A damaged registry: tells whether it is damaged, and reads what can still be read."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

from .run_database import DAMAGED, open_to_read, told_in_a_sentence
from .run_records import RunState

FIRST_TABLES = ("runs", "events", "metrics", "checkpoints")  # every version has them
TABLES = (*FIRST_TABLES, "drivers", "logs", "ranks", "claims", "tags", "archived")
JSON_COLUMNS = {"events": "data", "metrics": "record"}


def is_whole(path: Path) -> bool:
    """Whether every page of the database can be read and its tables are there. ClusterError when nobody may look."""
    try:
        with closing(open_to_read(path)) as db:
            for table in FIRST_TABLES:
                db.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchall()
            return [row[0] for row in db.execute("PRAGMA integrity_check")] == ["ok"]
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF in DAMAGED:
            return False
        with told_in_a_sentence(path):
            raise


def salvage(damaged: Path, into: sqlite3.Connection) -> int:
    """Copies all readable rows of a damaged registry into a new one, in the caller's transaction.

    Returns how many runs the new registry has then.
    """
    for table in TABLES:
        columns = [row["name"] for row in into.execute(f"PRAGMA table_info({table})")]
        for row in readable_rows(damaged, table):
            if _makes_sense(table, row):
                _insert(into, table, {k: value for k, value in dict(row).items() if k in ("rowid", *columns)})
    return int(into.execute("SELECT COUNT(*) FROM runs").fetchone()[0])


def readable_rows(damaged: Path, table: str) -> Iterator[sqlite3.Row]:
    """The rows before the first that cannot be read, then, from the end, the rows behind the last that cannot."""
    seen: set[int] = set()
    for order in ("ASC", "DESC"):
        with suppress(sqlite3.Error), closing(open_to_read(damaged)) as db:
            for row in db.execute(f"SELECT rowid AS rowid, * FROM {table} ORDER BY rowid {order}"):
                if row["rowid"] in seen:
                    break
                seen.add(row["rowid"])
                yield row


def begin_numbers_anew(db: sqlite3.Connection) -> None:
    """Lets events and metrics go on at numbers that no reader has seen.

    They go on at the milliseconds since 1970: no registry ever wrote so many records.
    """
    now = int(time.time() * 1000)
    db.execute("DELETE FROM sqlite_sequence WHERE name = 'events'")
    db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('events', ?)", (now,))
    db.execute("INSERT OR REPLACE INTO numbers (name, last) VALUES ('metrics', ?)", (now,))


def _insert(db: sqlite3.Connection, table: str, row: dict[str, object]) -> None:
    with suppress(sqlite3.IntegrityError):  # a value is missing, or the row is there already
        marks = ", ".join("?" for _ in row)
        db.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", tuple(row.values()))


def _makes_sense(table: str, row: sqlite3.Row) -> bool:
    """Whether a readable row has values that we can have written: damage may change values, too."""
    try:
        if table == "runs":
            RunState(row["state"])
        if table in JSON_COLUMNS:
            json.loads(row[JSON_COLUMNS[table]])
    except (ValueError, TypeError):
        return False
    return True

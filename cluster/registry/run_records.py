"""What the registry of runs holds: its tables, the states of a run, and the rows of runs and checkpoints."""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

FACTS_FILE = "state.json"  # in a run's folder: a copy of the registry's row, for the day when the registry is lost
KEPT_FACTS = ("name", "state", "reason", "created_at", "updated_at", "ended_at", "tags", "archived")
TAG_KEY = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
LONGEST_TAG, MOST_TAGS = 200, 32  # characters of a value; tags of a run

SCHEMA_VERSION = 6
SCHEMA = """
CREATE TABLE runs (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '',
    created_at REAL NOT NULL, updated_at REAL NOT NULL, ended_at REAL, config TEXT NOT NULL,
    driver_pid INTEGER, driver_started REAL, stop_requested INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL REFERENCES runs(id), time REAL NOT NULL,
    kind TEXT NOT NULL, message TEXT NOT NULL, data TEXT NOT NULL DEFAULT '{}'
);
CREATE INDEX events_of_run ON events(run_id, seq);
CREATE TABLE metrics (
    run_id TEXT NOT NULL REFERENCES runs(id), kind TEXT NOT NULL, step INTEGER NOT NULL, time REAL NOT NULL,
    record TEXT NOT NULL, PRIMARY KEY (run_id, kind, step)
);
CREATE TABLE checkpoints (
    run_id TEXT NOT NULL REFERENCES runs(id), step INTEGER NOT NULL, path TEXT NOT NULL, bytes INTEGER NOT NULL,
    created_at REAL NOT NULL, generation INTEGER NOT NULL, seconds REAL, PRIMARY KEY (run_id, step)
);
CREATE TABLE ranks (
    run_id TEXT NOT NULL REFERENCES runs(id), rank INTEGER NOT NULL, node TEXT NOT NULL, address TEXT NOT NULL,
    pid INTEGER NOT NULL, heartbeat REAL NOT NULL, received TEXT NOT NULL DEFAULT '', PRIMARY KEY (run_id, rank)
);
"""
# drivers: the process that drives a run. It is a table of its own because an older gemfleet reads whole rows of `runs`.
# logs: how many bytes of a log belong to kept batches.
# numbers: the last number that a table gave to a record, so that no number is given twice.
SINCE_VERSION_4 = """
CREATE TABLE drivers (
    run_id TEXT PRIMARY KEY REFERENCES runs(id), pid INTEGER NOT NULL, boot TEXT NOT NULL, ticks INTEGER NOT NULL
);
CREATE TABLE logs (
    run_id TEXT NOT NULL REFERENCES runs(id), source TEXT NOT NULL, bytes INTEGER NOT NULL,
    PRIMARY KEY (run_id, source)
);
CREATE TABLE numbers (name TEXT PRIMARY KEY, last INTEGER NOT NULL);
"""
# claims: what a run needs of a cluster, see `Claim`. Version 4 made this table outside its schema, at the first claim.
SINCE_VERSION_5 = """
CREATE TABLE IF NOT EXISTS claims (
    run_id TEXT PRIMARY KEY, cluster TEXT NOT NULL, workers INTEGER NOT NULL, cpus REAL NOT NULL, gpus REAL NOT NULL,
    kind TEXT NOT NULL, queued_at REAL NOT NULL, admitted INTEGER NOT NULL
);
"""
# tags, archived: what people say of a run. An older gemfleet reads whole rows of `runs`, so these are tables, too.
SINCE_VERSION_6 = """
CREATE TABLE tags (
    run_id TEXT NOT NULL REFERENCES runs(id), key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (run_id, key)
);
CREATE TABLE archived (run_id TEXT PRIMARY KEY REFERENCES runs(id), at REAL NOT NULL);
"""
SCHEMA += SINCE_VERSION_4 + SINCE_VERSION_5 + SINCE_VERSION_6
# By version: the statements that bring a file of the version before up to it. `SCHEMA` makes a new file the same.
# Statements elsewhere name their columns, so that a run of an older gemfleet goes on while a newer one reads the file.
MIGRATIONS = {
    2: "ALTER TABLE checkpoints ADD COLUMN seconds REAL",
    3: "ALTER TABLE ranks ADD COLUMN received TEXT NOT NULL DEFAULT ''",
    4: SINCE_VERSION_4,
    5: SINCE_VERSION_5,
    6: SINCE_VERSION_6,
}
# The beginning of a statement that reads runs with what people say of them.
SELECT_RUNS = (
    "SELECT runs.*, (SELECT json_group_object(key, value) FROM tags WHERE run_id = runs.id) AS tags, "
    "EXISTS (SELECT 1 FROM archived WHERE run_id = runs.id) AS archived FROM runs"
)


class RunState(StrEnum):
    """Where a run stands. Only `RunRegistry.reopen` leaves a terminal state."""

    QUEUED = "queued"
    PREFLIGHT = "preflight"
    STAGING = "staging"
    PREPARING_DATA = "preparing_data"
    FINDING_BATCH = "finding_batch"
    TRAINING = "training"
    RESTARTING = "restarting"
    PUBLISHING = "publishing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"

    @property
    def is_terminal(self) -> bool:
        """Whether the run has ended."""
        return self in (RunState.SUCCEEDED, RunState.FAILED, RunState.STOPPED, RunState.INTERRUPTED)


@dataclass(frozen=True)
class Run:
    """One row of `runs`, and what people say of the run. Times are seconds since the epoch.

    tags: values by key; archived: lists leave the run out unless asked for it
    """

    id: str
    name: str
    state: RunState
    reason: str
    created_at: float
    updated_at: float
    ended_at: float | None
    config: str
    driver_pid: int | None
    driver_started: float | None
    stop_requested: bool
    tags: Mapping[str, str] = field(default_factory=dict)
    archived: bool = False

    @classmethod
    def from_row(cls, row: sqlite3.Row) -> Run:
        """The run of a row of `SELECT_RUNS`, or of a whole row of a file without tags."""
        values = dict(row)
        values |= {"state": RunState(values["state"]), "stop_requested": bool(values["stop_requested"])}
        if "tags" in values:
            values |= {"tags": json.loads(values["tags"]), "archived": bool(values["archived"])}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class CheckpointRow:
    """One row of `checkpoints`: a committed checkpoint.

    path:       where it is, for people: a folder, or the address in an object store
    bytes:      of all its files
    created_at: seconds since the epoch
    generation: the attempt of the run that saved it
    """

    step: int
    path: str
    bytes: int
    created_at: float
    generation: int


def tag_problem(key: str, value: str) -> str | None:
    """Why this is no tag; None where it is one."""
    if not re.fullmatch(TAG_KEY, key):
        return f"{key[:80]!r} is no key of a tag; use letters, digits, `.`, `_` and `-`, at most 63"
    if not 0 < len(value) <= LONGEST_TAG:
        return f"the value of the tag {key} has {len(value)} characters; give 1 to {LONGEST_TAG}"
    return None


def keep_facts(home: Path, run: Run) -> None:
    """Copies a run's row into the run's folder. Does nothing where there is no folder, or no room in it."""
    path = home / "runs" / run.id / FACTS_FILE
    temporary = path.with_name(f".{FACTS_FILE}.{os.getpid()}")
    with suppress(OSError):
        temporary.write_text(json.dumps({key: value for key, value in run.to_dict().items() if key in KEPT_FACTS}))
        temporary.replace(path)

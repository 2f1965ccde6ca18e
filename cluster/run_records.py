"""What the registry of runs holds: its tables, a run's states, and a run's row."""

from __future__ import annotations

import sqlite3
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

SCHEMA_VERSION = 3
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
# What turns a file of the version before into one of this version. `SCHEMA` says the same for a new file.
# Statements elsewhere name their columns, so that a run of an older gemfleet goes on while a newer one reads the file.
MIGRATIONS = {
    2: "ALTER TABLE checkpoints ADD COLUMN seconds REAL",
    3: "ALTER TABLE ranks ADD COLUMN received TEXT NOT NULL DEFAULT ''",
}


class RunState(StrEnum):
    """Where a run stands. A terminal state is left only by `RunRegistry.reopen`."""

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
        return self in (RunState.SUCCEEDED, RunState.FAILED, RunState.STOPPED, RunState.INTERRUPTED)


@dataclass(frozen=True)
class Run:
    """One row of `runs`. Times are seconds since the epoch."""

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

    @classmethod
    def from_row(cls, row: sqlite3.Row) -> Run:
        values = dict(row)
        return cls(**{**values, "state": RunState(values["state"]), "stop_requested": bool(values["stop_requested"])})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

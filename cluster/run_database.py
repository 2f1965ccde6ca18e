"""The file of the registry of runs: SQLite with write-ahead logging, its tables made or brought up to this version."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

from .errors import ClusterError
from .private import private_file, private_folder
from .run_records import MIGRATIONS, SCHEMA, SCHEMA_VERSION

BUSY_SECONDS = 30.0
AGAIN_SECONDS = 0.01


class RunDatabase:
    """The database at `path`, created with its folder when absent; a file of an older version is brought up to this
    one. Raises ClusterError for a newer one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        private_folder(path.parent)
        private_file(path)
        self._enable_wal()
        with self._connect() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                raise ClusterError(f"{path} was written by a newer gemfleet (schema {version}); upgrade gemfleet here")
            if version == 0:
                self._create_schema(db)
            elif version < SCHEMA_VERSION:
                self._migrate(db, version)

    def _reading(self) -> AbstractContextManager[sqlite3.Connection]:
        """One consistent view of everything, without waiting for a writer."""
        return self._connect("DEFERRED")

    @contextmanager
    def _connect(self, kind: str = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
        db.row_factory = sqlite3.Row
        try:
            db.execute("PRAGMA synchronous = NORMAL")  # with WAL a power cut costs the last moments, never the file
            db.execute(f"BEGIN {kind}")
            yield db
            db.execute("COMMIT")
        finally:
            db.close()  # rolls back what was not committed

    def _enable_wal(self) -> None:
        """Write-ahead logging, so that readers never wait for a writer. It cannot be switched inside a transaction.

        Of several processes that switch at once SQLite refuses all but one without waiting: they would wait for each
        other. The others find it switched the next time.
        """
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            with closing(sqlite3.connect(self.path, timeout=BUSY_SECONDS)) as db:
                try:
                    db.execute("PRAGMA journal_mode = WAL")
                    return
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                        raise
            time.sleep(AGAIN_SECONDS)

    def _create_schema(self, db: sqlite3.Connection) -> None:
        for statement in SCHEMA.split(";"):
            if statement.strip():
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _migrate(self, db: sqlite3.Connection, version: int) -> None:
        """From `version` to this one, in the caller's transaction: wholly or not at all."""
        for step in range(version + 1, SCHEMA_VERSION + 1):
            db.execute(MIGRATIONS[step])
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

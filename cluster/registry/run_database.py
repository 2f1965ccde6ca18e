"""The file of the registry of runs: SQLite with write-ahead logging, its tables made or brought up to this version.

A full disk must keep nobody from reading, nor from the removals that make room again. So a reserved file lies beside
the database, which gives its place to the next writing when there is no other; and a reader that cannot make the files
that SQLite shares between processes reads without them.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from ..errors import ClusterError, DiskFull, RegistryDamaged, RegistryLost
from ..private import private_file, private_folder
from .run_records import MIGRATIONS, SCHEMA, SCHEMA_VERSION

BUSY_SECONDS = 30.0
AGAIN_SECONDS = 0.01
RESERVE_BYTES = 2 << 20
FULL_BYTES = 256 << 10  # with less than this free, the reserve is given up
# SQLITE_ERROR: our statements are right, so the tables are not those that we made.
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_ERROR)
NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
RUN_PARTS = ("config.resolved.yaml", "checkpoints", "logs")  # what shows that a folder is a run's


class RunDatabase:
    """The database at `path`, created with its folder when absent; a file of an older version is brought up to this
    one. ClusterError for a newer one. On a full disk a file that is there can be read as it is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._prepared = False
        private_folder(path.parent)
        private_file(path)
        try:
            self._prepare()
        except DiskFull:
            if not path.exists() or path.stat().st_size == 0:
                raise

    def _prepare(self) -> None:
        """The tables, and the reserve."""
        self._give_reserve_up_if_full()
        self._enable_wal()
        with self._connect(create=True) as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                message = f"{self.path} was written by a newer gemfleet (schema {version}); upgrade gemfleet here"
                raise ClusterError(message)
            if version == 0:
                self._create_schema(db)
            elif version < SCHEMA_VERSION:
                self._migrate(db, version)
        self._prepared = True
        self._make_reserve()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent view of everything, without waiting for a writer."""
        with told_in_a_sentence(self.path):
            db = open_to_read(self.path)
            try:
                db.execute("BEGIN")
                yield db
            finally:
                db.close()

    @contextmanager
    def _connect(self, kind: str = "IMMEDIATE", *, create: bool = False) -> Iterator[sqlite3.Connection]:
        """One transaction. `create`: make the file when it is absent; else that is RegistryLost."""
        if not self._prepared and not create:
            self._prepare()
        self._give_reserve_up_if_full()
        with told_in_a_sentence(self.path):
            db = _open(self.path, "rwc" if create else "rw")
            try:
                db.execute("PRAGMA synchronous = NORMAL")  # with WAL a power cut costs the last moments, never the file
                db.execute(f"BEGIN {kind}")
                yield db
                db.execute("COMMIT")
            finally:
                db.close()  # rolls back what was not committed

    def connect(self) -> AbstractContextManager[sqlite3.Connection]:
        """A writing transaction, for tables that are kept beside the registry's own."""
        return self._connect()

    def _enable_wal(self) -> None:
        """Write-ahead logging, so that readers never wait for a writer. It cannot be switched inside a transaction.

        Of several processes that switch at once SQLite refuses all but one without waiting: they would wait for each
        other. The others find it switched the next time.
        """
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            with told_in_a_sentence(self.path):
                db = _open(self.path, "rwc")
                try:
                    db.execute("PRAGMA journal_mode = WAL")
                    return
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                        raise
                finally:
                    db.close()
            time.sleep(AGAIN_SECONDS)

    def _create_schema(self, db: sqlite3.Connection) -> None:
        _execute_all(db, SCHEMA)
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _migrate(self, db: sqlite3.Connection, version: int) -> None:
        """From `version` to this one, in the caller's transaction: wholly or not at all."""
        for step in range(version + 1, SCHEMA_VERSION + 1):
            _execute_all(db, MIGRATIONS[step])
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    @property
    def _reserve(self) -> Path:
        return self.path.with_name(f"{self.path.name}-reserve")

    def _make_reserve(self) -> None:
        with suppress(OSError):
            if not self._reserve.exists() and free_bytes(self.path.parent) > 8 * RESERVE_BYTES:
                private_file(self._reserve)
                self._reserve.write_bytes(bytes(RESERVE_BYTES))

    def _give_reserve_up_if_full(self) -> None:
        with suppress(OSError):
            if free_bytes(self.path.parent) < FULL_BYTES:
                self._reserve.unlink(missing_ok=True)


def is_lost(path: Path) -> bool:
    """Whether there is no database, though folders beside it are those of runs."""
    if path.exists() and path.stat().st_size:
        return False
    return any((folder / part).exists() for folder in (path.parent / "runs").glob("[!.]*") for part in RUN_PARTS)


def open_to_read(path: Path) -> sqlite3.Connection:
    """A connection that changes nothing, also on a full disk. RegistryLost when there is no such file."""
    db = _open(path, "rw")
    try:
        db.execute("PRAGMA query_only = 1")
        db.execute("SELECT 1 FROM sqlite_master").fetchone()
        return db
    except sqlite3.OperationalError as error:
        db.close()
        if error.sqlite_errorcode & 0xFF not in NO_ROOM or free_bytes(path.parent) > FULL_BYTES:
            raise
    db = _open(path, "rw")
    db.execute("PRAGMA locking_mode = EXCLUSIVE")  # SQLite then shares nothing, and needs no files to share
    db.execute("PRAGMA query_only = 1")
    return db


def reads_alone(db: sqlite3.Connection) -> bool:
    """Whether nobody else can write while this connection, of `open_to_read`, is open."""
    return bool(db.execute("PRAGMA locking_mode").fetchone()[0] == "exclusive")


@contextmanager
def told_in_a_sentence(path: Path) -> Iterator[None]:
    """SQLite's errors become those of a registry, with the remedy; a violated constraint stays what it is."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except sqlite3.DatabaseError as error:
        raise explained(error, path) from error


def explained(error: sqlite3.DatabaseError, path: Path) -> ClusterError:
    """What an error of SQLite means for who uses the registry at `path`."""
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    if not path.exists():
        return RegistryLost(f"the registry {path} is lost; `gemfleet repair` rebuilds it from the runs' folders")
    if code in DAMAGED:
        return RegistryDamaged(f"the registry {path} is damaged ({error}); `gemfleet repair` rebuilds it")
    if code == sqlite3.SQLITE_FULL or (code in NO_ROOM and free_bytes(path.parent) < FULL_BYTES):
        return DiskFull(
            f"the disk of {path.parent} is full ({error}); free some, for example by `gemfleet prune --yes`"
        )
    if code == sqlite3.SQLITE_BUSY:
        return ClusterError(f"another process kept {path} locked for {BUSY_SECONDS:g} s; try again")
    return ClusterError(f"the registry {path} cannot be used ({error}); see who may read and write it, and its disk")


def free_bytes(folder: Path) -> int:
    """What ordinary users may still write on the disk of `folder`."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def _open(path: Path, mode: str) -> sqlite3.Connection:
    name = f"file:{quote(str(path))}?mode={mode}"
    db = sqlite3.connect(name, timeout=BUSY_SECONDS, isolation_level=None, uri=True)
    db.row_factory = sqlite3.Row
    return db


def _execute_all(db: sqlite3.Connection, statements: str) -> None:
    """Not by `executescript`, which commits first."""
    for statement in statements.split(";"):
        if statement.strip():
            db.execute(statement)

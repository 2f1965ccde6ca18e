"""The file of the registry of runs: an SQLite database with write-ahead logging and a versioned schema.

A full disk must not keep anybody from reading, nor from the removals that make room again. So a reserve file lies
beside the database, and goes when a writer needs its room; and a reader that cannot make the files which SQLite
shares between processes reads without them.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from ..errors import ClusterError, DiskFull, RegistryDamaged, RegistryLost
from ..private import private_file, private_folder
from .run_records import MIGRATIONS, SCHEMA, SCHEMA_VERSION

BUSY_SECONDS = 30.0
AGAIN_SECONDS = 0.01
RESERVE_BYTES = 2 << 20
FULL_BYTES = 256 << 10  # a disk with less free than this counts as full
# SQLITE_ERROR is among them: our statements are right, so the tables are not those that we made.
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_ERROR)
NO_ROOM = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
RUN_PARTS = ("config.resolved.yaml", "checkpoints", "logs")  # a folder with one of these is a run's


class RunDatabase:
    """The database at `path`. Makes file and folder when absent, and brings an older file up to this version.

    ClusterError for a file of a newer version. On a full disk, a file that is there can still be read as it is.
    """

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

    @contextmanager
    def connect(self, *, create: bool = False) -> Iterator[sqlite3.Connection]:
        """One writing transaction: it is committed when the block ends, and rolled back when the block raises.

        `create`: make the file when it is absent; otherwise an absent file is RegistryLost.
        """
        if not self._prepared and not create:
            self._prepare()
        self._give_reserve_up_if_full()
        with told_in_a_sentence(self.path):
            db = _open(self.path, "rwc" if create else "rw")
            try:
                db.execute("PRAGMA synchronous = NORMAL")  # with WAL a power cut costs the last moments, never the file
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
            finally:
                db.close()  # rolls back what was not committed

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent view of everything. It never waits for a writer."""
        with told_in_a_sentence(self.path):
            db = open_to_read(self.path)
            try:
                db.execute("BEGIN")
                yield db
            finally:
                db.close()

    def _prepare(self) -> None:
        """Makes the tables, or brings them up to this version; then makes the reserve."""
        self._give_reserve_up_if_full()
        self._enable_wal()
        with self.connect(create=True) as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                message = f"{self.path} was written by a newer gemfleet (schema {version}); upgrade gemfleet here"
                raise ClusterError(message)
            steps = [SCHEMA] if version == 0 else [MIGRATIONS[n] for n in range(version + 1, SCHEMA_VERSION + 1)]
            if steps:
                _execute_all(db, ";".join(steps))
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self._prepared = True
        self._make_reserve()

    def _enable_wal(self) -> None:
        """Switches to write-ahead logging, so that readers never wait for a writer. It cannot be done in a transaction.

        When several processes switch at once, SQLite refuses all but one of them without waiting, because they would
        wait for each other. The others try again and find it switched.
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
    """Whether the database is missing although folders of runs lie beside it."""
    if path.exists() and path.stat().st_size:
        return False
    return any((folder / part).exists() for folder in (path.parent / "runs").glob("[!.]*") for part in RUN_PARTS)


def open_to_read(path: Path) -> sqlite3.Connection:
    """A connection that changes nothing. It opens on a full disk, too. sqlite3.Error when the file is missing."""
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
    db.execute("PRAGMA locking_mode = EXCLUSIVE")  # SQLite then needs no files to share
    db.execute("PRAGMA query_only = 1")
    return db


def reads_alone(db: sqlite3.Connection) -> bool:
    """Whether nobody can write while this connection, made by `open_to_read`, is open."""
    return bool(db.execute("PRAGMA locking_mode").fetchone()[0] == "exclusive")


@contextmanager
def told_in_a_sentence(path: Path) -> Iterator[None]:
    """Turns SQLite's errors into ClusterErrors with a remedy. A violated constraint stays what it is."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except sqlite3.DatabaseError as error:
        raise explained(error, path) from error


def explained(error: sqlite3.DatabaseError, path: Path) -> ClusterError:
    """What an error of SQLite means to the user of the registry at `path`."""
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
    return ClusterError(f"the registry {path} cannot be used ({error}); check its permissions and its disk")


def free_bytes(folder: Path) -> int:
    """Bytes that an ordinary user may still write to the disk of `folder`."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def _open(path: Path, mode: str) -> sqlite3.Connection:
    name = f"file:{quote(str(path))}?mode={mode}"
    db = sqlite3.connect(name, timeout=BUSY_SECONDS, isolation_level=None, uri=True)
    db.row_factory = sqlite3.Row
    return db


def _execute_all(db: sqlite3.Connection, statements: str) -> None:
    """Runs statements inside the caller's transaction; `executescript` would commit it first."""
    for statement in statements.split(";"):
        if statement.strip():
            db.execute(statement)

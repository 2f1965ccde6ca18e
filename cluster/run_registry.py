"""The registry of runs on the head: states, events, metrics, checkpoints and ranks, in SQLite (WAL).

Every method opens its own short connection, so that commands, the driver and actors may use one file at the same time.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import psutil

from .errors import RunConflict, UnknownRun
from .redaction import clean_text, redact
from .run_database import RunDatabase
from .run_figures import figures_of
from .run_records import Run, RunState

__all__ = ["Run", "RunRegistry", "RunState"]


class RunRegistry(RunDatabase):
    """What is known of all runs, in the file at `path`."""

    def create_run(self, run_id: str, name: str, config: str, driver_pid: int | None = None) -> None:
        """A new run in state `queued`. RunConflict when the id exists."""
        started = psutil.Process(driver_pid).create_time() if driver_pid is not None else None
        now = time.time()
        try:
            with self._connect() as db:
                db.execute(
                    "INSERT INTO runs (id, name, state, created_at, updated_at, config, driver_pid, driver_started) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (run_id, name, RunState.QUEUED, now, now, config, driver_pid, started),
                )
                self._event(db, run_id, "state", RunState.QUEUED, {"state": RunState.QUEUED})
        except sqlite3.IntegrityError:
            raise RunConflict(
                f"a run with the id {run_id!r} exists already; choose another id, or go on with it: "
                f"`gemfleet resume {run_id}`"
            ) from None

    def reopen(self, run_id: str, config: str, driver_pid: int | None = None) -> None:
        """A run that has ended is launched again: state `queued`. RunConflict while it has not ended."""
        started = psutil.Process(driver_pid).create_time() if driver_pid is not None else None
        with self._connect() as db:
            state = self._state(db, run_id)
            if not state.is_terminal:
                raise RunConflict(f"run {run_id} is {state}; stop it first (`gemfleet stop {run_id} --wait`)")
            db.execute(
                "UPDATE runs SET state = ?, reason = '', updated_at = ?, ended_at = NULL, config = ?, driver_pid = ?, "
                "driver_started = ?, stop_requested = 0 WHERE id = ?",
                (RunState.QUEUED, time.time(), config, driver_pid, started, run_id),
            )
            db.execute("DELETE FROM ranks WHERE run_id = ?", (run_id,))  # there may be fewer of them from now on
            self._event(db, run_id, "state", f"{RunState.QUEUED}: resumed", {"state": RunState.QUEUED})

    def launch_seq(self, run_id: str) -> int:
        """`seq` of the event by which the run was launched last; later events belong to that launch."""
        with self._reading() as db:
            query = "SELECT MAX(seq) FROM events WHERE run_id = ? AND kind = 'state' AND data LIKE ?"
            row = db.execute(query, (run_id, f'%"{RunState.QUEUED}"%')).fetchone()
        return int(row[0] or 0)

    def set_driver(self, run_id: str, pid: int) -> None:
        """The process that carries the run out, where another one made its row. RunConflict when the run has ended."""
        started = psutil.Process(pid).create_time()
        with self._connect() as db:
            state = self._state(db, run_id)
            if state.is_terminal:
                raise RunConflict(f"run {run_id} is {state} already; submit it again")
            db.execute("UPDATE runs SET driver_pid = ?, driver_started = ? WHERE id = ?", (pid, started, run_id))

    def transition(self, run_id: str, state: RunState, reason: str = "") -> None:
        """Move to `state`: one row and one event. RunConflict when the run has ended; the same state is no change.

        The event of an end keeps the run's figures, so that nobody has to add them up again.
        """
        reason = clean_text(reason)
        figures = {"figures": self.figures(run_id)} if state.is_terminal else {}
        with self._connect() as db:
            current = self._state(db, run_id)
            if current == state:
                return
            if current.is_terminal:
                raise RunConflict(f"run {run_id} is {current} already and cannot become {state}")
            now = time.time()
            db.execute(
                "UPDATE runs SET state = ?, reason = ?, updated_at = ?, ended_at = ? WHERE id = ?",
                (state, reason, now, now if state.is_terminal else None, run_id),
            )
            message = f"{state}: {reason}" if reason else state
            self._event(db, run_id, "state", message, {"state": state, "reason": reason, **figures})

    def figures(self, run_id: str) -> dict[str, Any]:
        """What the run's steps so far come to, read step by step. See `figures_of`."""
        with self._reading() as db:
            where = "FROM metrics WHERE run_id = ? AND kind = 'step'"
            count = db.execute(f"SELECT COUNT(*) {where}", (run_id,)).fetchone()[0]
            rows = db.execute(f"SELECT record {where} ORDER BY step", (run_id,))
            return figures_of((json.loads(row["record"]) for row in rows), count)

    def end_figures(self, run_id: str) -> dict[str, Any]:
        """The figures that were kept when the run ended; empty while it goes on."""
        with self._reading() as db:
            query = "SELECT data FROM events WHERE run_id = ? AND kind = 'state' ORDER BY seq DESC LIMIT 1"
            row = db.execute(query, (run_id,)).fetchone()
        return {} if row is None else dict(json.loads(row["data"]).get("figures", {}))

    def set_reason(self, run_id: str, reason: str) -> None:
        """Why the run stands where it does, until its state changes: what it waits for, for example."""
        with self._connect() as db:
            values = clean_text(reason), time.time(), run_id
            db.execute("UPDATE runs SET reason = ?, updated_at = ? WHERE id = ?", values)

    def add_event(self, run_id: str, kind: str, message: str, data: Mapping[str, Any] | None = None) -> None:
        with self._connect() as db:
            self._event(db, run_id, kind, message, data or {})

    def add_metrics(self, run_id: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Records with `kind` (step or eval) and `step`; a step that is reported again replaces the older record.

        The row's number always grows, also for a record that replaces another: readers go on from the last they saw.
        """
        rows = [(run_id, r["kind"], r["step"], r.get("time", time.time()), _json(r)) for r in records]
        with self._connect() as db:
            db.executemany(
                "INSERT OR REPLACE INTO metrics (rowid, run_id, kind, step, time, record) "
                "VALUES ((SELECT COALESCE(MAX(rowid), 0) + 1 FROM metrics), ?, ?, ?, ?, ?)",
                rows,
            )

    def add_checkpoint(
        self, run_id: str, step: int, path: str, size: int, generation: int, seconds: float | None = None
    ) -> None:
        """A committed checkpoint: its manifest is on disk already. seconds: from its first file to its commit."""
        with self._connect() as db:
            row = (run_id, step, path, size, time.time(), generation, seconds)
            known = db.execute("SELECT 1 FROM checkpoints WHERE run_id = ? AND step = ?", (run_id, step)).fetchone()
            db.execute(
                "INSERT OR REPLACE INTO checkpoints (run_id, step, path, bytes, created_at, generation, seconds) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            if known is None:
                took = "" if seconds is None else f", {seconds:.1f} s"
                message = f"checkpoint-{step} is on the head ({size:,} bytes{took})"
                self._event(db, run_id, "checkpoint", message, {"step": step, "bytes": size, "seconds": seconds})

    def remove_checkpoint(self, run_id: str, step: int) -> None:
        with self._connect() as db:
            db.execute("DELETE FROM checkpoints WHERE run_id = ? AND step = ?", (run_id, step))

    def delete_run(self, run_id: str) -> None:
        """Forget a run that has ended, with all its records. RunConflict when it has not."""
        with self._connect() as db:
            state = self._state(db, run_id)
            if not state.is_terminal:
                raise RunConflict(f"run {run_id} is {state}; stop it first")
            for table in ("events", "metrics", "checkpoints", "ranks"):
                db.execute(f"DELETE FROM {table} WHERE run_id = ?", (run_id,))
            db.execute("DELETE FROM runs WHERE id = ?", (run_id,))

    def heartbeat(self, run_id: str, rank: int, node: str, address: str, pid: int, received: str = "") -> None:
        """A rank lives; received: the mark of the newest batch that it sent and that is kept whole."""
        with self._connect() as db:
            db.execute(
                "INSERT OR REPLACE INTO ranks (run_id, rank, node, address, pid, heartbeat, received) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (run_id, rank, node, address, pid, time.time(), received),
            )

    def newest_received(self, run_id: str, rank: int) -> str:
        """The mark of the newest batch that is kept of this rank; empty where there is none."""
        with self._reading() as db:
            row = db.execute("SELECT received FROM ranks WHERE run_id = ? AND rank = ?", (run_id, rank)).fetchone()
        return "" if row is None else str(row["received"])

    def forget_ranks(self, run_id: str) -> None:
        """Before ranks start anew, perhaps fewer of them on other nodes."""
        with self._connect() as db:
            db.execute("DELETE FROM ranks WHERE run_id = ?", (run_id,))

    def request_stop(self, run_id: str) -> None:
        """Ask a run to save a checkpoint and end. RunConflict when it has ended."""
        with self._connect() as db:
            state = self._state(db, run_id)
            if state.is_terminal:
                raise RunConflict(f"run {run_id} is {state} already; there is nothing to stop")
            db.execute("UPDATE runs SET stop_requested = 1 WHERE id = ?", (run_id,))
            self._event(db, run_id, "stop", "stop requested: a checkpoint is saved, then the run ends", {})

    def stop_requested(self, run_id: str) -> bool:
        return self.get_run(run_id).stop_requested

    def get_run(self, run_id: str) -> Run:
        """UnknownRun when there is none."""
        with self._reading() as db:
            row = db.execute("SELECT * FROM runs WHERE id = ?", (run_id,)).fetchone()
        if row is None:
            raise UnknownRun(f"there is no run {run_id!r}; `gemfleet runs` lists them")
        return Run.from_row(row)

    def find_run(self, prefix: str) -> Run:
        """The run of this id, the newest for `latest`, or the only one whose id begins so. UnknownRun otherwise."""
        with self._reading() as db:
            ids = [row["id"] for row in db.execute("SELECT id FROM runs ORDER BY created_at DESC, rowid DESC")]
        if prefix == "latest" and ids:
            return self.get_run(ids[0])
        matching = [prefix] if prefix in ids else [i for i in ids if i.startswith(prefix)]
        if len(matching) != 1:
            found = f"{len(matching)} runs begin with" if matching else "there is no run"
            raise UnknownRun(f"{found} {prefix!r}; `gemfleet runs` lists them")
        return self.get_run(matching[0])

    def list_runs(self, limit: int = 50, state: RunState | None = None) -> list[Run]:
        """Newest first."""
        where, values = ("WHERE state = ?", [str(state)]) if state else ("", [])
        with self._reading() as db:
            query = f"SELECT * FROM runs {where} ORDER BY created_at DESC, rowid DESC LIMIT ?"
            return [Run.from_row(row) for row in db.execute(query, [*values, limit])]

    def events(self, run_id: str, after: int = 0) -> list[dict[str, Any]]:
        """Events with `seq` above `after`, oldest first."""
        query = "SELECT * FROM events WHERE run_id = ? AND seq > ? ORDER BY seq"
        with self._reading() as db:
            rows = db.execute(query, (run_id, after)).fetchall()
        return [{**dict(row), "data": json.loads(row["data"])} for row in rows]

    def metrics(self, run_id: str, since_step: int = 0, kind: str | None = None) -> list[dict[str, Any]]:
        """Records of this step and later, in the order of steps."""
        where = "run_id = ? AND step >= ? AND (? IS NULL OR kind = ?)"
        with self._reading() as db:
            rows = db.execute(
                f"SELECT record FROM metrics WHERE {where} ORDER BY step, kind", (run_id, since_step, kind, kind)
            )
            return [json.loads(row["record"]) for row in rows]

    def latest_metrics(self, run_id: str, kind: str) -> dict[str, Any] | None:
        query = "SELECT record FROM metrics WHERE run_id = ? AND kind = ? ORDER BY step DESC LIMIT 1"
        with self._reading() as db:
            row = db.execute(query, (run_id, kind)).fetchone()
        return None if row is None else json.loads(row["record"])

    def checkpoints(self, run_id: str) -> list[dict[str, Any]]:
        with self._reading() as db:
            query = "SELECT * FROM checkpoints WHERE run_id = ? ORDER BY step"
            return [dict(row) for row in db.execute(query, (run_id,))]

    def ranks(self, run_id: str) -> list[dict[str, Any]]:
        with self._reading() as db:
            return [dict(row) for row in db.execute("SELECT * FROM ranks WHERE run_id = ? ORDER BY rank", (run_id,))]

    def mark_interrupted(self) -> list[str]:
        """Runs that have not ended but whose driver process is gone become `interrupted`; returns their ids.

        Call it on the head, where drivers run. A process id that was given to another process is told by its start.
        """
        marked = []
        for run in self.list_runs(limit=1_000_000):
            if not run.state.is_terminal and not _driver_lives(run):
                with suppress(RunConflict):  # it ended between the two looks
                    self.transition(run.id, RunState.INTERRUPTED, "the driver process is gone")
                    marked.append(run.id)
        return marked

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


def _driver_lives(run: Run) -> bool:
    if run.driver_pid is None:
        return True
    try:
        process = psutil.Process(run.driver_pid)
        started = process.create_time()
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
    except psutil.NoSuchProcess:
        return False
    return run.driver_started is None or abs(started - run.driver_started) < 2.0

"""The registry of runs on the head: states, events, metrics, checkpoints and ranks, in SQLite (WAL).

Every method opens its own short connection, so that commands, the driver and actors may use one file at the same time.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import psutil

from ..driver import ProcessIdentity, is_held
from ..errors import DiskFull, RunConflict, UnknownRun
from ..redaction import clean_text
from .event_kinds import EventKind
from .record_batch import Batch, BatchLog
from .run_figures import figures_of
from .run_records import Run, RunState, keep_facts
from .run_rows import RunRows

__all__ = ["Run", "RunRegistry", "RunState"]


class Committed(Protocol):
    """What the registry keeps of a committed checkpoint, as a manifest says it."""

    @property
    def step(self) -> int: ...
    @property
    def total_bytes(self) -> int: ...
    @property
    def generation(self) -> int: ...
    @property
    def created_at(self) -> float: ...


class RunRegistry(RunRows):
    """What is known of all runs, in the file at `path`.

    over_run: the figures of a run that are kept when it ends, see `figures_of`; without it, the number of steps alone
    """

    def __init__(self, path: Path, over_run: Mapping[str, str] | None = None) -> None:
        super().__init__(path)
        self._over_run = over_run or {}

    def create_run(self, run_id: str, name: str, config: str, driver_pid: int | None = None) -> None:
        """A new run in state `queued`. RunConflict when the id exists."""
        now = time.time()
        try:
            with self._connect() as db:
                db.execute(
                    "INSERT INTO runs (id, name, state, created_at, updated_at, config) VALUES (?, ?, ?, ?, ?, ?)",
                    (run_id, name, RunState.QUEUED, now, now, config),
                )
                self._drive(db, run_id, driver_pid)
                self._event(db, run_id, EventKind.STATE, RunState.QUEUED, {"state": RunState.QUEUED})
        except sqlite3.IntegrityError:
            raise RunConflict(
                f"a run with the id {run_id!r} exists already; choose another id, or go on with it: "
                f"`gemfleet resume {run_id}`"
            ) from None

    def reopen(self, run_id: str, config: str, driver_pid: int | None = None) -> None:
        """A run that has ended is launched again: state `queued`. RunConflict while it has not ended."""
        with self._connect() as db:
            state = self._state(db, run_id)
            if not state.is_terminal:
                raise RunConflict(f"run {run_id} is {state}; stop it first (`gemfleet stop {run_id} --wait`)")
            db.execute(
                "UPDATE runs SET state = ?, reason = '', updated_at = ?, ended_at = NULL, config = ?, "
                "stop_requested = 0 WHERE id = ?",
                (RunState.QUEUED, time.time(), config, run_id),
            )
            self._drive(db, run_id, driver_pid)
            db.execute("DELETE FROM ranks WHERE run_id = ?", (run_id,))  # there may be fewer of them from now on
            self._event(db, run_id, EventKind.STATE, f"{RunState.QUEUED}: resumed", {"state": RunState.QUEUED})
        keep_facts(self.path.parent, self.get_run(run_id))

    def launch_seq(self, run_id: str) -> int:
        """`seq` of the event by which the run was launched last; later events belong to that launch."""
        with self._reading() as db:
            query = "SELECT MAX(seq) FROM events WHERE run_id = ? AND kind = 'state' AND data LIKE ?"
            row = db.execute(query, (run_id, f'%"{RunState.QUEUED}"%')).fetchone()
        return int(row[0] or 0)

    def set_driver(self, run_id: str, pid: int) -> None:
        """The process that carries the run out, where another one made its row. RunConflict when the run has ended."""
        with self._connect() as db:
            state = self._state(db, run_id)
            if state.is_terminal:
                raise RunConflict(f"run {run_id} is {state} already; submit it again")
            self._drive(db, run_id, pid)

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
            self._event(db, run_id, EventKind.STATE, message, {"state": state, "reason": reason, **figures})
        keep_facts(self.path.parent, self.get_run(run_id))

    def figures(self, run_id: str) -> dict[str, Any]:
        """What the run's steps so far come to, read step by step. See `figures_of`."""
        with self._reading() as db:
            where = "FROM metrics WHERE run_id = ? AND kind = 'step'"
            count = db.execute(f"SELECT COUNT(*) {where}", (run_id,)).fetchone()[0]
            rows = db.execute(f"SELECT record {where} ORDER BY step", (run_id,))
            return figures_of((json.loads(row["record"]) for row in rows), count, self._over_run)

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
        with self._connect() as db:
            self._metrics(db, run_id, records)

    def count_log(self, run_id: str, log: BatchLog) -> None:
        """Before the first batch of a log: all that lies there already is kept."""
        with self._connect() as db:
            query = "INSERT OR IGNORE INTO logs (run_id, source, bytes) VALUES (?, ?, ?)"
            db.execute(query, (run_id, log.source, log.size()))

    def keep_batch(
        self, run_id: str, rank: int, mark: str, batch: Batch, who: Mapping[str, Any], log: BatchLog
    ) -> bool:
        """All that came from a rank at once, in one transaction: wholly or not at all, and once. Whether it was new.

        mark: names the batch; one that is the newest of this rank already is not kept again. Empty: always kept.
        who: the rank's `node`, `address` and `pid`, which lives
        log: the file of its lines, which was counted; what lies there beyond is of a batch that was cut off
        """
        with self._connect() as db:
            new = not mark or mark != self._newest_received(db, run_id, rank)
            if new:
                for kind, message, data in batch.events:
                    self._event(db, run_id, kind, message, data)
                self._metrics(db, run_id, batch.metrics)
                self._append(db, run_id, log)
            self._heartbeat(db, run_id, rank, who, mark)
        return new

    def restore_run(
        self, run: Run, checkpoints: Sequence[tuple[str, Committed]], driver: ProcessIdentity | None
    ) -> None:
        """A run that the registry does not know, with its checkpoints and their places. `driver`: if it has not ended,
        the process that carries it out."""
        facts = (run.id, run.name, run.state, run.reason, run.created_at, run.updated_at, run.ended_at, run.config)
        with self._connect() as db:
            db.execute(
                "INSERT INTO runs (id, name, state, reason, created_at, updated_at, ended_at, config) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                facts,
            )
            if driver is not None and not run.state.is_terminal:
                self._drive(db, run.id, driver.pid)
            db.executemany(
                "INSERT OR REPLACE INTO checkpoints (run_id, step, path, bytes, created_at, generation) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                [(run.id, m.step, place, m.total_bytes, m.created_at, m.generation) for place, m in checkpoints],
            )
            message = f"{run.state}: the registry was rebuilt from the run's folder"
            self._event(db, run.id, EventKind.STATE, message, {"state": run.state})

    def heartbeat(self, run_id: str, rank: int, node: str, address: str, pid: int, received: str = "") -> None:
        """A rank lives; received: the mark of the newest batch that it sent and that is kept whole."""
        with self._connect() as db:
            self._heartbeat(db, run_id, rank, {"node": node, "address": address, "pid": pid}, received)

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
                self._event(
                    db, run_id, EventKind.CHECKPOINT, message, {"step": step, "bytes": size, "seconds": seconds}
                )

    def remove_checkpoint(self, run_id: str, step: int) -> None:
        with self._connect() as db:
            db.execute("DELETE FROM checkpoints WHERE run_id = ? AND step = ?", (run_id, step))

    def delete_run(self, run_id: str) -> None:
        """Forget a run that has ended, with all its records. RunConflict when it has not."""
        with self._connect() as db:
            state = self._state(db, run_id)
            if not state.is_terminal:
                raise RunConflict(f"run {run_id} is {state}; stop it first")
            for table in ("events", "metrics", "checkpoints", "ranks", "drivers", "logs"):
                db.execute(f"DELETE FROM {table} WHERE run_id = ?", (run_id,))
            db.execute("DELETE FROM runs WHERE id = ?", (run_id,))

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
            self._event(db, run_id, EventKind.STOP, "stop requested: a checkpoint is saved, then the run ends", {})

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
            raise UnknownRun(f"{found} {prefix!r}; `gemfleet runs` lists them{self._remedy(prefix)}")
        return self.get_run(matching[0])

    def _remedy(self, run_id: str) -> str:
        """For a run that has a folder but no row."""
        there = run_id not in ("", "latest") and "/" not in run_id and (self.path.parent / "runs" / run_id).is_dir()
        return ", and `gemfleet repair` brings a run back that has a folder" if there else ""

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

        Call it on the head, where drivers run. On a full disk nothing is marked, so that reading goes on.
        """
        marked: list[str] = []
        if not self._prepared:
            return marked
        for run in self.list_runs(limit=1_000_000):
            if not run.state.is_terminal and not self._driver_lives(run):
                with suppress(RunConflict, DiskFull):  # it ended between the two looks
                    self.transition(run.id, RunState.INTERRUPTED, "the driver process is gone")
                    marked.append(run.id)
        return marked

    def _driver_lives(self, run: Run) -> bool:
        if run.driver_pid is None or is_held(self.path.parent / "runs" / run.id):
            return True
        with self._reading() as db:
            query = "SELECT pid, boot, ticks FROM drivers WHERE run_id = ? AND pid = ?"
            row = db.execute(query, (run.id, run.driver_pid)).fetchone()
        return _older_driver_lives(run) if row is None else ProcessIdentity(**row).lives()


def _older_driver_lives(run: Run) -> bool:
    """Of a run that was launched by a gemfleet which kept the wall-clock time of its driver's start alone."""
    try:
        process = psutil.Process(run.driver_pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        steady = run.driver_started is None or abs(process.create_time() - run.driver_started) < 2.0
        return steady or any("gemfleet" in part for part in process.cmdline())
    except psutil.NoSuchProcess:
        return False

"""The registry of runs on the head, in SQLite (WAL): the life of each run, what it reports, and questions about it.

Every method opens its own short connection, so that commands, the driver and actors use one file at the same time.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from ..driver import ProcessIdentity, is_held, started_then
from ..errors import ClusterError, DiskFull, RunConflict, UnknownRun
from ..redaction import clean_text, redact
from .event_kinds import EventKind
from .run_figures import figures_of
from .run_queries import NO_LIMIT, RunQueries
from .run_records import MOST_TAGS, CheckpointRow, Run, RunState, keep_facts, tag_problem
from .run_reports import RunReports

__all__ = ["Run", "RunRegistry", "RunState"]


class RunRegistry(RunReports, RunQueries):
    """All runs in the file at `path`.

    over_run: which figures the registry keeps of a run that ends, see `figures_of`; None: the number of steps alone
    on_end:   called with each run that this object ends, once its end is written; it must not raise
    """

    def __init__(
        self,
        path: Path,
        over_run: Mapping[str, str] | None = None,
        on_end: Callable[[Run], None] = lambda run: None,
    ) -> None:
        super().__init__(path)
        self._over_run, self._on_end = over_run or {}, on_end

    def create_run(self, run_id: str, name: str, config: str, driver_pid: int | None = None) -> None:
        """Adds a run in state `queued`. `driver_pid`: the process that drives it. RunConflict when the id exists."""
        now = time.time()
        try:
            with self.connect() as db:
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
        """Launches a run again that has ended: its state becomes `queued`. RunConflict while it has not ended."""
        with self.connect() as db:
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
            db.execute("DELETE FROM archived WHERE run_id = ?", (run_id,))
            self._event(db, run_id, EventKind.STATE, f"{RunState.QUEUED}: resumed", {"state": RunState.QUEUED})
        keep_facts(self.path.parent, self.get_run(run_id))

    def set_driver(self, run_id: str, pid: int) -> None:
        """Names the process that drives a run whose row another process made. RunConflict when the run has ended."""
        with self.connect() as db:
            state = self._state(db, run_id)
            if state.is_terminal:
                raise RunConflict(f"run {run_id} is {state} already; submit it again")
            self._drive(db, run_id, pid)

    def transition(self, run_id: str, state: RunState, reason: str = "") -> None:
        """Moves a run to `state`: one row and one event. RunConflict when the run has ended.

        The same state is no change. The event of an end holds the run's figures, so that nobody adds them up again.
        """
        reason = clean_text(reason)
        figures = {"figures": self.figures(run_id)} if state.is_terminal else {}
        with self.connect() as db:
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
        run = self.get_run(run_id)
        keep_facts(self.path.parent, run)
        if state.is_terminal:
            self._on_end(run)

    def set_reason(self, run_id: str, reason: str) -> None:
        """Says why the run stands where it does, for example what it waits for. The next transition replaces it."""
        with self.connect() as db:
            values = clean_text(reason), time.time(), run_id
            db.execute("UPDATE runs SET reason = ?, updated_at = ? WHERE id = ?", values)

    def figures(self, run_id: str) -> dict[str, Any]:
        """The figures of the run's steps so far, read step by step. See `figures_of`."""
        with self._reading() as db:
            where = "FROM metrics WHERE run_id = ? AND kind = 'step'"
            count = db.execute(f"SELECT COUNT(*) {where}", (run_id,)).fetchone()[0]
            rows = db.execute(f"SELECT record {where} ORDER BY step", (run_id,))
            return figures_of((json.loads(row["record"]) for row in rows), count, self._over_run)

    def request_stop(self, run_id: str) -> None:
        """Asks a run to save a checkpoint and end. RunConflict when it has ended."""
        with self.connect() as db:
            state = self._state(db, run_id)
            if state.is_terminal:
                raise RunConflict(f"run {run_id} is {state} already; there is nothing to stop")
            db.execute("UPDATE runs SET stop_requested = 1 WHERE id = ?", (run_id,))
            self._event(db, run_id, EventKind.STOP, "stop requested: a checkpoint is saved, then the run ends", {})

    def annotate(self, run_id: str, tags: Mapping[str, str | None] | None = None, archived: bool | None = None) -> None:
        """Changes what people say of a run, all of it or nothing.

        tags:     to set by key; None takes one away. What looks like a secret is hidden before it is kept
        archived: lists leave the run out from now on, or no longer, which resuming does, too; None: as it is

        ClusterError for what is no tag. RunConflict for more than MOST_TAGS, and for archiving before the run's end.
        """
        problems = [tag_problem(key, "-" if value is None else value) for key, value in (tags or {}).items()]
        if any(problems):
            raise ClusterError("; ".join(filter(None, problems)))
        with self.connect() as db:
            state = self._state(db, run_id)
            if tags:
                self._tag(db, run_id, redact(dict(tags)))
            if archived is not None:
                self._archive(db, run_id, state, archived)
        keep_facts(self.path.parent, self.get_run(run_id))

    def _tag(self, db: sqlite3.Connection, run_id: str, tags: Mapping[str, str | None]) -> None:
        for key, value in tags.items():
            db.execute("DELETE FROM tags WHERE run_id = ? AND key = ?", (run_id, key))
            if value is not None:
                db.execute("INSERT INTO tags (run_id, key, value) VALUES (?, ?, ?)", (run_id, key, value))
        if db.execute("SELECT COUNT(*) FROM tags WHERE run_id = ?", (run_id,)).fetchone()[0] > MOST_TAGS:
            raise RunConflict(f"run {run_id} would have more than {MOST_TAGS} tags; take some away first")
        said = ", ".join(f"{key}={value or ''}" for key, value in tags.items())
        self._event(db, run_id, EventKind.TAGGED, f"tagged: {said}", {"tags": dict(tags)})

    def _archive(self, db: sqlite3.Connection, run_id: str, state: RunState, archived: bool) -> None:
        if archived and not state.is_terminal:
            raise RunConflict(f"run {run_id} is {state}; only a run that has ended can be archived")
        if bool(db.execute("SELECT 1 FROM archived WHERE run_id = ?", (run_id,)).fetchone()) == archived:
            return
        db.execute("DELETE FROM archived WHERE run_id = ?", (run_id,))
        if archived:
            db.execute("INSERT INTO archived (run_id, at) VALUES (?, ?)", (run_id, time.time()))
        message = "archived" if archived else "no longer archived"
        self._event(db, run_id, EventKind.ARCHIVED, message, {"archived": archived})

    def delete_run(self, run_id: str) -> None:
        """Forgets a run that has ended, with all its records. RunConflict when it has not."""
        with self.connect() as db:
            state = self._state(db, run_id)
            if not state.is_terminal:
                raise RunConflict(f"run {run_id} is {state}; stop it first")
            for table in ("events", "metrics", "checkpoints", "ranks", "drivers", "logs", "claims", "tags", "archived"):
                db.execute(f"DELETE FROM {table} WHERE run_id = ?", (run_id,))
            db.execute("DELETE FROM runs WHERE id = ?", (run_id,))

    def restore_run(self, run: Run, checkpoints: Sequence[CheckpointRow], driver: ProcessIdentity | None) -> None:
        """Adds a run that the registry lost. `driver`: the process that drives it, if it has not ended."""
        facts = (run.id, run.name, run.state, run.reason, run.created_at, run.updated_at, run.ended_at, run.config)
        with self.connect() as db:
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
                [(run.id, c.step, c.path, c.bytes, c.created_at, c.generation) for c in checkpoints],
            )
            tags = [(run.id, key, value) for key, value in run.tags.items()]
            db.executemany("INSERT OR REPLACE INTO tags (run_id, key, value) VALUES (?, ?, ?)", tags)
            if run.archived:
                db.execute("INSERT OR REPLACE INTO archived (run_id, at) VALUES (?, ?)", (run.id, run.updated_at))
            message = f"{run.state}: the registry was rebuilt from the run's folder"
            self._event(db, run.id, EventKind.STATE, message, {"state": run.state})

    def mark_interrupted(self) -> list[str]:
        """Marks each run that has not ended, but whose driver is gone, as `interrupted`. Returns the ids of these runs.

        Call it on the head, where drivers run. On a full disk it marks nothing, so that reading goes on.
        """
        marked: list[str] = []
        if not self._prepared:
            return marked
        for run in self.list_runs(limit=NO_LIMIT):
            if not run.state.is_terminal and not self._driver_lives(run):
                with suppress(RunConflict, DiskFull):  # it ended between the two looks
                    self.transition(run.id, RunState.INTERRUPTED, "the driver process is gone")
                    marked.append(run.id)
        return marked

    def _driver_lives(self, run: Run) -> bool:
        if run.driver_pid is None or is_held(self.path.parent / "runs" / run.id):
            return True
        query = "SELECT pid, boot, ticks FROM drivers WHERE run_id = ? AND pid = ?"
        rows = self._query(query, (run.id, run.driver_pid))
        if rows:
            return ProcessIdentity(**rows[0]).lives()
        return started_then(run.driver_pid, run.driver_started)  # an older gemfleet kept no more

    def _drive(self, db: sqlite3.Connection, run_id: str, pid: int | None) -> None:
        """Names the process that drives the run from now on. None: nobody knows."""
        started = None if pid is None else psutil.Process(pid).create_time()  # for a gemfleet without `drivers`
        db.execute("UPDATE runs SET driver_pid = ?, driver_started = ? WHERE id = ?", (pid, started, run_id))
        db.execute("DELETE FROM drivers WHERE run_id = ?", (run_id,))
        if pid is not None:
            driver = ProcessIdentity.of(pid)
            db.execute(
                "INSERT INTO drivers (run_id, pid, boot, ticks) VALUES (?, ?, ?, ?)",
                (run_id, driver.pid, driver.boot, driver.ticks),
            )

    def _state(self, db: sqlite3.Connection, run_id: str) -> RunState:
        row = db.execute("SELECT state FROM runs WHERE id = ?", (run_id,)).fetchone()
        if row is None:
            raise UnknownRun(f"there is no run {run_id!r}; `gemfleet runs` lists them")
        return RunState(row["state"])

    def _query(self, query: str, values: Sequence[Any]) -> list[sqlite3.Row]:
        with self._reading() as db:
            return db.execute(query, values).fetchall()

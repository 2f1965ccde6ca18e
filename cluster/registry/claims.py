"""The queue of a head: what each run that has not ended claims of which cluster, kept beside the registry's rows."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..inventory import Node
from .admission import Claim, Verdict, judge
from .run_registry import RunRegistry

TABLE = """
CREATE TABLE IF NOT EXISTS claims (
    run_id TEXT PRIMARY KEY, cluster TEXT NOT NULL, workers INTEGER NOT NULL, cpus REAL NOT NULL, gpus REAL NOT NULL,
    kind TEXT NOT NULL, queued_at REAL NOT NULL, admitted INTEGER NOT NULL
)
"""


class Claims:
    """Claims on one cluster. A claim counts as long as its run has not ended and its driver lives.

    Those that were made here come back by themselves should the registry be rebuilt meanwhile.
    """

    def __init__(self, registry: RunRegistry, cluster: str) -> None:
        """`cluster`: the address of its head, the same for all runs on it."""
        self._registry, self._cluster = registry, cluster
        self._made: dict[str, dict[str, object]] = {}
        with self._connect():
            pass

    def queue(self, run_id: str, workers: int, cpus: float, gpus: float, kind: str = "") -> None:
        """A run takes its place at the end of the queue, or, where it was launched before, anew."""
        self._registry.forget_ranks(run_id)
        row = {"run_id": run_id, "cluster": self._cluster, "workers": workers, "cpus": cpus, "gpus": gpus, "kind": kind}
        self._made[run_id] = {**row, "queued_at": time.time(), "admitted": 0}
        with self._connect() as db:
            db.execute("DELETE FROM claims WHERE run_id = ?", (run_id,))
            self._restore(db)

    def resize(self, run_id: str, workers: int) -> None:
        """An elastic run has another number of ranks now."""
        with self._connect() as db:
            db.execute("UPDATE claims SET workers = ? WHERE run_id = ?", (workers, run_id))
        self._made.get(run_id, {})["workers"] = workers

    def admit(self, run_id: str, nodes: Sequence[Node]) -> Verdict:
        """Decide on a queued run; one that may begin is marked in the same moment, so that two never see one place."""
        self._registry.mark_interrupted()
        with self._connect() as db:
            mine, others = self._split(db, run_id)
            verdict = judge(mine, others, nodes)
            if verdict.admitted:
                db.execute("UPDATE claims SET admitted = 1 WHERE run_id = ?", (run_id,))
        self._made.get(run_id, {})["admitted"] = int(verdict.admitted)
        return verdict

    def split(self, run_id: str) -> tuple[Claim, list[Claim]]:
        """This run's claim, and those of all others on the cluster that have not ended."""
        with self._connect() as db:
            return self._split(db, run_id)

    def _split(self, db: sqlite3.Connection, run_id: str) -> tuple[Claim, list[Claim]]:
        query = (
            "SELECT claims.* FROM claims JOIN runs ON runs.id = claims.run_id "
            "WHERE cluster = ? AND state NOT IN ('succeeded', 'failed', 'stopped', 'interrupted')"
        )
        claims = {row["run_id"]: self._claim(db, row) for row in db.execute(query, (self._cluster,))}
        return claims.pop(run_id), list(claims.values())

    def _claim(self, db: sqlite3.Connection, row: sqlite3.Row) -> Claim:
        ranks = db.execute("SELECT node FROM ranks WHERE run_id = ?", (row["run_id"],))
        values = {key: row[key] for key in ("run_id", "workers", "cpus", "gpus", "kind", "queued_at")}
        return Claim(**values, admitted=bool(row["admitted"]), held=Counter(rank["node"] for rank in ranks))

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        with self._registry.connect() as db:
            db.execute(TABLE)
            self._restore(db)
            yield db

    def _restore(self, db: sqlite3.Connection) -> None:
        for row in self._made.values():
            names, marks = ", ".join(row), ", ".join("?" for _ in row)
            db.execute(f"INSERT OR IGNORE INTO claims ({names}) VALUES ({marks})", tuple(row.values()))

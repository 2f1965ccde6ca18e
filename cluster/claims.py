"""The queue of a head: what each run that has not ended claims of which cluster, kept beside the registry's rows."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .admission import Claim, Verdict, judge
from .inventory import Node
from .run_registry import RunRegistry

BUSY_SECONDS = 30.0
TABLE = """
CREATE TABLE IF NOT EXISTS claims (
    run_id TEXT PRIMARY KEY, cluster TEXT NOT NULL, workers INTEGER NOT NULL, cpus REAL NOT NULL, gpus REAL NOT NULL,
    kind TEXT NOT NULL, queued_at REAL NOT NULL, admitted INTEGER NOT NULL
)
"""


class Claims:
    """Claims on one cluster. A claim counts as long as its run has not ended and its driver lives."""

    def __init__(self, registry: RunRegistry, cluster: str) -> None:
        """`cluster`: the address of its head, the same for all runs on it."""
        self._registry, self._cluster = registry, cluster
        with self._connect() as db:
            db.execute(TABLE)

    def queue(self, run_id: str, workers: int, cpus: float, gpus: float, kind: str = "") -> None:
        """A run takes its place at the end of the queue, or, where it was launched before, anew."""
        self._registry.forget_ranks(run_id)
        row = (run_id, self._cluster, workers, cpus, gpus, kind, time.time(), 0)
        with self._connect() as db:
            db.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def resize(self, run_id: str, workers: int) -> None:
        """An elastic run has another number of ranks now."""
        with self._connect() as db:
            db.execute("UPDATE claims SET workers = ? WHERE run_id = ?", (workers, run_id))

    def admit(self, run_id: str, nodes: Sequence[Node]) -> Verdict:
        """Decide on a queued run; one that may begin is marked in the same moment, so that two never see one place."""
        self._registry.mark_interrupted()
        with self._connect() as db:
            mine, others = self._split(db, run_id)
            verdict = judge(mine, others, nodes)
            if verdict.admitted:
                db.execute("UPDATE claims SET admitted = 1 WHERE run_id = ?", (run_id,))
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
        db = sqlite3.connect(self._registry.path, timeout=BUSY_SECONDS, isolation_level=None)
        db.row_factory = sqlite3.Row
        try:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
        finally:
            db.close()  # rolls back what was not committed

"""The queue of a cluster: what each run that has not ended claims, in the registry's table `claims`."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..inventory import Node
from .admission import Claim, Verdict, judge
from .run_records import RunState
from .run_registry import RunRegistry

ENDED = tuple(state for state in RunState if state.is_terminal)


class Claims:
    """The claims on one cluster. A claim counts until its run has ended or its driver is gone.

    An object puts the claims that it made back when somebody rebuilds the registry meanwhile.
    """

    def __init__(self, registry: RunRegistry, cluster: str) -> None:
        """`cluster`: the address of the cluster's head, the same for all runs on it."""
        self._registry, self._cluster = registry, cluster
        self._made: dict[str, dict[str, object]] = {}

    def queue(self, run_id: str, workers: int, cpus: float, gpus: float, kind: str = "") -> None:
        """Puts a run at the end of the queue, also one that stood in it before. Arguments: see `Claim`."""
        self._registry.forget_ranks(run_id)
        row = {"run_id": run_id, "cluster": self._cluster, "workers": workers, "cpus": cpus, "gpus": gpus, "kind": kind}
        self._made[run_id] = {**row, "queued_at": time.time(), "admitted": 0}
        with self._registry.connect() as db:
            db.execute("DELETE FROM claims WHERE run_id = ?", (run_id,))
            self._put_back(db)

    def resize(self, run_id: str, workers: int) -> None:
        """Gives an elastic run's claim another number of ranks."""
        with self._connect() as db:
            db.execute("UPDATE claims SET workers = ? WHERE run_id = ?", (workers, run_id))
        self._made.get(run_id, {})["workers"] = workers

    def admit(self, run_id: str, nodes: Sequence[Node]) -> Verdict:
        """Decides on a queued run. Decision and mark are one transaction, so that two runs never get one place."""
        self._registry.mark_interrupted()
        with self._connect() as db:
            mine, others = self._split(db, run_id)
            verdict = judge(mine, others, nodes)
            if verdict.admitted:
                db.execute("UPDATE claims SET admitted = 1 WHERE run_id = ?", (run_id,))
        self._made.get(run_id, {})["admitted"] = int(verdict.admitted)
        return verdict

    def split(self, run_id: str) -> tuple[Claim, list[Claim]]:
        """This run's claim, and the claims of all other runs on the cluster that have not ended."""
        with self._connect() as db:
            return self._split(db, run_id)

    def _split(self, db: sqlite3.Connection, run_id: str) -> tuple[Claim, list[Claim]]:
        query = (
            "SELECT claims.* FROM claims JOIN runs ON runs.id = claims.run_id "
            f"WHERE cluster = ? AND state NOT IN ({', '.join('?' for _ in ENDED)})"
        )
        claims = {row["run_id"]: self._claim(db, row) for row in db.execute(query, (self._cluster, *ENDED))}
        return claims.pop(run_id), list(claims.values())

    def _claim(self, db: sqlite3.Connection, row: sqlite3.Row) -> Claim:
        ranks = db.execute("SELECT node FROM ranks WHERE run_id = ?", (row["run_id"],))
        values = {key: row[key] for key in ("run_id", "workers", "cpus", "gpus", "kind", "queued_at")}
        return Claim(**values, admitted=bool(row["admitted"]), held=Counter(rank["node"] for rank in ranks))

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        with self._registry.connect() as db:
            self._put_back(db)
            yield db

    def _put_back(self, db: sqlite3.Connection) -> None:
        for row in self._made.values():
            names, marks = ", ".join(row), ", ".join("?" for _ in row)
            db.execute(f"INSERT OR IGNORE INTO claims ({names}) VALUES ({marks})", tuple(row.values()))

"""What the registry and the doctor know of the nodes: ranks and their loads, the queue, and measured ways."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemfleet.cluster.doctor.report import kept_findings
from gemfleet.cluster.registry.registry_reader import RegistryReader
from gemfleet.cluster.registry.run_registry import Run

from .cluster_schemas import Examination, FindingView, PlacedRank, WaitingRun
from .redaction import redact
from .views import waiting_for

MOST_RUNS = 200  # that go on at once
LOAD = ("memory_bytes", "memory_total_bytes", "utilisation")


def placed_ranks(reader: RegistryReader) -> list[PlacedRank]:
    """The ranks of all runs that go on, by node, then by run."""
    found = [rank for run in reader.runs_since(time.time(), MOST_RUNS) for rank in _ranks_of(reader, run)]
    return sorted(found, key=lambda rank: (rank.address, rank.node, rank.run_id, rank.rank))


def _ranks_of(reader: RegistryReader, run: Run) -> list[PlacedRank]:
    rows = reader.ranks(run.id)
    step = redact(reader.latest_metrics(run.id, "step") or {}) if rows else {}
    return [
        PlacedRank(
            run_id=run.id,
            rank=row["rank"],
            node=row["node"],
            address=row["address"],
            heartbeat_age_seconds=max(0.0, time.time() - row["heartbeat"]),
            **{name: _own(step, name, row["rank"]) for name in LOAD},
        )
        for row in rows
    ]


def _own(step: Mapping[str, Any], name: str, rank: int) -> Any:
    """A rank's entry in a figure of a step; None where the record lacks it."""
    values = step.get(name) or []
    return values[rank] if rank < len(values) else None


def waiting_runs(reader: RegistryReader) -> list[WaitingRun]:
    """The queue, the first one first."""
    return [
        WaitingRun(
            run_id=row["id"],
            since=row["since"],
            ranks=row["workers"],
            cpus_per_rank=row["cpus"],
            gpus_per_rank=row["gpus"],
            gpu_kind=row["kind"],
            waiting_for=waiting_for(reader, reader.get_run(row["id"])),
        )
        for row in reader.waiting()
    ]


def examination(home: Path) -> Examination | None:
    """What the doctor found last; None where it has not measured yet."""
    kept = kept_findings(home)
    if kept is None:
        return None
    at, findings = kept
    return Examination(examined_at=at, findings=[FindingView(**redact(finding)) for finding in findings])

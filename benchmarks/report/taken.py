"""Where and when records were taken, in one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..shared.record import Record


def taken(records: Sequence[Record]) -> str:
    """Machine, versions, sources and days of all records; several of a kind are all told."""
    machines = _several(", ".join(record.hardware.get("gpus") or [_cpu(record)]) for record in records)
    torch = _several(record.versions["torch"] for record in records if "torch" in record.versions) or "unknown"
    commits = _several((record.git_commit or "no repository")[:12] for record in records)
    days = _several(record.finished_at[:10] for record in records)
    load = max(record.hardware.get("load_average_at_start", [0.0])[0] for record in records)
    return f"On {machines}; torch {torch}; source {commits}; {days}; load average up to {load:g}."


def _cpu(record: Record) -> str:
    return f"{record.hardware.get('cpu', 'CPU')} ({record.hardware.get('cores', '?')} cores)"


def _several(values: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(values))

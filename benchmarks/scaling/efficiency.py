"""Efficiency from the records of a scaling suite: round by round, against the best single worker. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gemfleet.benchmarks.shared.record import Record
from gemfleet.benchmarks.shared.statistics import median

MODES = ("weak", "strong")


@dataclass(frozen=True)
class Point:
    """tokens_per_second: of the best micro-batch; efficiency: median over rounds, with the least and the most."""

    mode: str
    workers: int
    rows: int
    micro: int
    tokens_per_second: float
    efficiency: float
    least: float
    most: float
    wire_bytes: int


def efficiencies(records: Sequence[Record]) -> list[Point]:
    """Weak: as many rows for each worker as one has. Strong: one worker's rows shared. Empty without a single one."""
    good = [record for record in records if record.good_runs]
    singles = [record for record in good if record.config["ranks"] == 1]
    if not singles:
        return []
    reference = max(singles, key=_rate)  # the fastest single worker of all its rows and micro-batches
    every = sorted({record.config["ranks"] for record in good})
    points: list[Point] = []
    for mode in MODES:
        of_mode = []
        base = (min if mode == "weak" else max)(record.config["rows"] for record in singles)
        for workers in every:
            rows = base if mode == "weak" else base // workers
            found = [r for r in good if (r.config["ranks"], r.config["rows"]) == (workers, rows)]
            if found:
                of_mode.append(_point(mode, max(found, key=_rate), reference))
        if len(of_mode) == len(every):  # a single worker's rows alone make no mode
            points += of_mode
    return points


def _point(mode: str, record: Record, reference: Record) -> Point:
    workers = int(record.config["ranks"])
    ours, theirs = round_rates(record), round_rates(reference)
    shares = [ours[repeat] / (workers * theirs[repeat]) for repeat in ours if repeat in theirs]
    least, most = min(shares, default=float("nan")), max(shares, default=float("nan"))
    rows, micro, wire = record.config["rows"], record.config["micro"], record.runs[-1].facts["wire_bytes_per_step"]
    return Point(mode, workers, rows, micro, _rate(record), median(shares), least, most, wire)


def round_rates(record: Record) -> dict[int, float]:
    """Median tokens per second of each round."""
    return {
        run.repeat: median([t / s for t, s in zip(run.tokens, run.step_seconds, strict=True)][record.warmup :])
        for run in record.good_runs
    }


def _rate(record: Record) -> float:
    return median(list(round_rates(record).values()))

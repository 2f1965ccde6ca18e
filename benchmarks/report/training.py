"""The sections of the throughput and scaling suites."""

from __future__ import annotations

from collections.abc import Sequence

from ..scaling.efficiency import COLUMNS as SCALING_COLUMNS
from ..scaling.efficiency import cells, efficiencies
from ..shared.record import Record
from ..throughput.table import COLUMNS, notes, rows
from .chart import Chart, Section, Series, TableOf
from .taken import taken

GIB = 2**30


def throughput_section(records: Sequence[Record]) -> Section:
    good = [record for record in records if record.results]
    charts = [speed_chart(good), breakdown_chart(good), memory_chart(good)] if good else []
    table = TableOf(("case", *COLUMNS), rows(records))
    return Section("Throughput of training", taken(records), [table], charts, notes(records))


def speed_chart(records: Sequence[Record]) -> Chart:
    """Tokens per second, grouped by size and shape of the batch."""
    series = []
    for variant in dict.fromkeys(map(_variant, records)):
        mine = [record for record in records if _variant(record) == variant]
        rates = [record.results["tokens_per_second"] for record in mine]
        middle, low, high = ([rate[part] for rate in rates] for part in ("median", "p10", "p90"))
        series.append(Series(variant, [_shape(record) for record in mine], middle, low, high))
    return Chart(
        "throughput-by-size",
        "Throughput by size",
        "bar",
        "size, row length x rows in a pass",
        "non-pad tokens per second",
        series,
        "Median of the measured steps of all runs; whiskers: 10th and 90th percentile.",
    )


def breakdown_chart(records: Sequence[Record]) -> Chart:
    """What shares of the time went into waiting."""
    names = [record.case for record in records]
    waits = {
        "waiting for data": "share_waiting_for_data",
        "waiting for communication": "share_waiting_for_communication",
        "held up by saving": "share_waiting_for_checkpoints",
    }
    shares = {title: [100 * record.results[key] for record in records] for title, key in waits.items()}
    rest = [100 - sum(values) for values in zip(*shares.values(), strict=True)]
    series = [Series("computing", names, rest), *(Series(title, names, values) for title, values in shares.items())]
    return Chart("step-breakdown", "Where the time of training goes", "stack", "", "% of wall time", series)


def memory_chart(records: Sequence[Record]) -> Chart:
    """Peak memory of a rank against rows in a pass."""
    series = []
    kinds = dict.fromkeys((record.config["model"], record.config["length"], _variant(record)) for record in records)
    for model, length, variant in kinds:
        mine = [r for r in records if (r.config["model"], r.config["length"], _variant(r)) == (model, length, variant)]
        mine.sort(key=lambda record: int(record.config["micro"]))
        x = [float(record.config["micro"]) for record in mine]
        y = [record.results["peak_memory_bytes"] / GIB for record in mine]
        series.append(Series(f"{model} {length}, {variant}", x, y))
    return Chart(
        "memory-by-batch", "Memory against batch", "line", "rows in a pass", "peak memory of a rank, GiB", series
    )


def scaling_section(records: Sequence[Record]) -> Section:
    points = efficiencies(records)
    table = TableOf(("mode", *SCALING_COLUMNS), [list(cells(point)) for point in points])
    series = []
    for mode in dict.fromkeys(point.mode for point in points):
        mine = [point for point in points if point.mode == mode]
        series.append(Series(f"{mode} scaling", [float(p.workers) for p in mine], [p.tokens_per_second for p in mine]))
    if points:
        one = max(point.tokens_per_second for point in points if point.workers == 1)
        x = sorted({float(point.workers) for point in points})
        series.append(Series("ideal: N times the best single worker", x, [one * n for n in x], ideal=True))
    chart = Chart("scaling", "Scaling", "line", "workers", "non-pad tokens per second, all workers", series)
    return Section("Scaling", taken(records), [table], [chart] if points else [], [_setting(records[0])])


def _setting(record: Record) -> str:
    config = record.config
    return (
        f"{config['model']}, {config['strategy']}, {config['precision']}, rows of {config['length']} tokens, "
        f"{config['threads']} thread(s) a worker, all workers on one machine: no network is in these figures. "
        "Efficiency is against the fastest single worker, round by round: median, least and most."
    )


def _variant(record: Record) -> str:
    config = record.config
    parts = [config["strategy"], config["precision"]]
    parts += [config["quantization"]] if config["quantization"] != "none" else []
    parts += [f"{config['ranks']} ranks"] if config["ranks"] > 1 else []
    return " ".join([*parts, f"checkpointing {config['checkpointing']}"])


def _shape(record: Record) -> str:
    return f"{record.config['model']} {record.config['length']}x{record.config['micro']}"

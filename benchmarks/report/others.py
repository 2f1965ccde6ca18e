"""The sections of the suites that are not made of training cases: peers, launch, plan, and any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..shared.record import Record
from .chart import Chart, Section, Series, TableOf
from .taken import taken

GIB = 2**30
PEERS = (
    *("trainer", "tokens/s", "p10-p90", "s/step", "peak GiB", "mean loss", "loss apart"),
    *("over TRL's default", "over TRL's best"),
)


def peers_section(records: Sequence[Record]) -> Section:
    """Speed beside the other trainers, and the losses that must agree."""
    ordered = sorted(records, key=lambda record: -record.results["tokens_per_second"]["median"])
    rates = [record.results["tokens_per_second"] for record in ordered]
    middle, low, high = ([rate[part] for rate in rates] for part in ("median", "p10", "p90"))
    speed = Series("tokens per second", [record.case for record in ordered], middle, low, high)
    apart = [
        Series(record.case, [float(n + 1) for n in range(len(shares))], [100 * share for share in shares])
        for record in ordered
        if record.results["parity"] and (shares := record.results["parity"]["per_step"])
    ]
    charts = [
        Chart("peers-speed", "One LoRA step beside other trainers", "bar", "", "non-pad tokens per second", [speed]),
        Chart("peers-loss", "Loss parity", "line", "step", "loss apart from the plain loop's, %", apart),
    ]
    data = ordered[0].config.get("data", {}).get("tokens", {})
    note = (
        f"The same {data.get('examples', '?')} examples, batches, adapters and rate for all, in turn; a trainer whose "
        "mean loss departs from the plain loop's by more than 0.5% does not count. A CPU says nothing about GPUs."
    )
    rows = [_peer_row(record) for record in ordered]
    return Section("Beside other trainers", taken(records), [TableOf(PEERS, rows)], charts, [note])


def _peer_row(record: Record) -> list[str]:
    found = record.results
    rate, parity = found["tokens_per_second"], found["parity"]
    ratios = (found["ratio_to_trl_default"], found["ratio_to_best_trl"])
    return [
        record.case if found["counts"] else f"{record.case} (does not count)",
        f"{rate['median']:.1f}",
        f"{rate['p10']:.1f}-{rate['p90']:.1f}",
        f"{found['step_seconds']['median']:.2f}",
        f"{found['peak_rss_bytes'] / GIB:.2f}",
        f"{parity['mean_loss']:.4f}" if parity else "-",
        f"{parity['mean_difference']:.3%}" if parity else "-",
        *("-" if ratio is None else f"{ratio:.2f}x" for ratio in ratios),
    ]


def launch_section(records: Sequence[Record]) -> Section:
    """Seconds from the command to the first step, by phase."""
    good = [record for record in records if record.results]
    phases = list(dict.fromkeys(name for record in good for name in record.results["phases"]))
    names = [f"gemfleet {record.case}" for record in good]
    values = [[record.results["phases"].get(name, 0.0) for record in good] for name in phases]
    rows = [[name, *(f"{value:.2f}" for value in row)] for name, row in zip(phases, values, strict=True)]
    rows.append(["in all", *(f"{record.results['seconds']['median']:.2f}" for record in good)])
    series = [Series(name, names, row) for name, row in zip(phases, values, strict=True)]
    chart = Chart("launch", "From the command to the first step", "stack", "", "seconds", series)
    table = TableOf(("phase, median seconds", *names), rows)
    return Section("Starting", taken(records), [table], [chart] if good else [])


def plan_section(records: Sequence[Record]) -> Section:
    """Memory foretold beside memory measured."""
    shapes = [shape for record in records for shape in record.results["shapes"]]
    names = [shape["name"] for shape in shapes]
    foretold = [shape["predicted_bytes"]["total"] / GIB for shape in shapes]
    measured = [shape["measured_bytes"] / GIB for shape in shapes]
    rows = [
        [shape["name"], f"{said:.2f}", f"{found:.2f}", f"{shape['error']:+.1%}"]
        for shape, said, found in zip(shapes, foretold, measured, strict=True)
    ]
    series = [Series("foretold", names, foretold), Series("measured", names, measured)]
    chart = Chart("plan-memory", "Memory that the plan foretells", "bar", "", "GiB", series)
    table = TableOf(("shape", "foretold GiB", "measured GiB", "error"), rows)
    return Section("The plan's memory", taken(records), [table], [chart])


FAULTS = ("fault", "recovery s", "worst", "steps lost, worst", "training s", "effective time", "adapter")


def faults_section(records: Sequence[Record]) -> Section:
    """What one fault costs a run."""
    disturbed = [record for record in records if "recovery_seconds" in record.results]
    middle = [record.results["recovery_seconds"] for record in disturbed]
    series = Series("recovery", [record.case for record in disturbed], middle)
    chart = Chart("faults", "Seconds to recover", "bar", "", "seconds", [series])
    steps = records[0].config["steps"]
    note = f"Runs of {steps} steps, each with one fault; a longer run loses a smaller share to the same seconds."
    return Section("Faults", taken(records), [faults_table(records)], [chart] if disturbed else [], [note])


def faults_table(records: Sequence[Record]) -> TableOf:
    """Of each fault its recovery, and what the run took beside the undisturbed one."""
    return TableOf(FAULTS, [_fault_row(record) for record in records])


def _fault_row(record: Record) -> list[str]:
    found = record.results
    if "effective_time_ratio" not in found:
        return [record.case, *["-"] * 5, "failed"]
    return [
        record.case,
        *(f"{found[name]:.1f}" if name in found else "-" for name in ("recovery_seconds", "recovery_seconds_worst")),
        str(found.get("steps_lost_worst", "-")),
        f"{found['training_seconds']:.1f}",
        f"{found['effective_time_ratio']:.1%}",
        "the same" if found["same_adapter"] else "differs",
    ]


CAPS = ("model", "cap GiB", "rows found", "of best", "seconds", "memory trials", "training's peak GiB", "accelerate")


def batch_finder_section(records: Sequence[Record]) -> Section:
    """The micro-batch that was found under memory caps, and the speed of every size."""
    rows = [_cap_row(_of_what(record), cap) for record in records for cap in record.results["under_caps"]]
    speeds = [
        Series(
            _of_what(record), [size["rows"] for size in sizes], [size["speed"] / sizes[0]["speed"] for size in sizes]
        )
        for record in records
        if (sizes := record.results["every_size"])
    ]
    title = "Speed of every micro-batch"
    chart = Chart("batch-finder", title, "line", "rows in a pass", "supervised tokens/s, times one row's", speeds)
    note = "Best: the fastest of all sizes whose measured peak stays under the cap. accelerate: rows, and seconds."
    return Section("The micro-batch that is found", taken(records), [TableOf(CAPS, rows)], [chart], [note])


def _of_what(record: Record) -> str:
    return f"{record.config.get('model', record.case)}, rows of {record.config.get('max_length', '?')}"


def _cap_row(model: str, cap: Mapping[str, Any]) -> list[str]:
    found, other, training = cap["gemfleet"], cap["accelerate"], cap["training"]
    return [
        model,
        f"{cap['cap_bytes'] / GIB:.2f}",
        str(found["rows"]),
        f"{found['of_best']:.1%}",
        f"{found['seconds']:.0f}",
        str(found["memory_trials"]),
        f"{training['peak_bytes'] / GIB:.2f}" if training else "-",
        f"{other['rows']}, {other['seconds']:.0f} s" if isinstance(other, Mapping) else str(other),
    ]


def plain_section(records: Sequence[Record]) -> Section:
    """Any other suite: its figures as they are."""
    tables = [
        TableOf((record.case, "figure"), [list(entry) for entry in flattened(record.results).items()])
        for record in records
    ]
    return Section(f"Suite {records[0].suite}", taken(records), tables, [])


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Figures by dotted names; long lists are left to the records."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flattened(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            found[f"{prefix}{name}"] = f"{value:,.4g}"
        elif len(text := str(value)) <= 80:
            found[f"{prefix}{name}"] = text
    return found

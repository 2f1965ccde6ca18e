"""The table of training records: on the terminal, and as Markdown beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ..shared.record import Record

COLUMNS = (
    *("tokens/s", "p10-p90", "raw", "supervised", "per rank", "s/step", "MFU", "HFU", "of ceiling"),
    *("peak GiB", "data", "comm.", "saving", "loss", "grad norm"),
)

# What fits on a terminal; the Markdown has all.
SHOWN = ("tokens/s", "supervised", "s/step", "MFU", "HFU", "peak GiB", "data", "comm.", "saving", "loss")


def rows(records: Sequence[Record]) -> list[list[str]]:
    """One row a case, its name first."""
    return [[record.case, *_cells(record)] for record in records]


def print_table(console: Console, records: Sequence[Record]) -> None:
    table = Table(title="LoRA training")
    table.add_column("case", overflow="fold")
    for column in SHOWN:
        table.add_column(column, justify="right", no_wrap=True)
    for case, *values in rows(records):
        found = dict(zip(COLUMNS, values, strict=True))
        table.add_row(case, *(found[column] for column in SHOWN))
    console.print(table)
    for line in notes(records):
        console.print(line, highlight=False)


def write_table(records: Sequence[Record], path: Path) -> None:
    """The same as Markdown."""
    lines = ["| case | " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * len(COLUMNS)]
    lines += ["| " + " | ".join(row) + " |" for row in rows(records)]
    path.write_text("\n".join([*lines, "", *(f"{line}  " for line in notes(records)), ""]), encoding="utf-8")


def notes(records: Sequence[Record]) -> list[str]:
    """What the columns mean, on what they were taken, and which cases failed."""
    known = [record for record in records if record.results]
    lines = [
        "tokens/s: non-pad tokens of a step over its wall time, all ranks, median of the measured steps of all runs; "
        "raw counts padding too. data, comm., saving: shares of the time that waited for them (comm.: gloo only).",
    ]
    if known:
        first = known[0]
        basis = sorted({str(record.results["mfu_basis"]) for record in known})
        ceiling = max(record.results["ceiling_flops_per_second"] for record in known) / 1e9
        lines.append(
            f"MFU counts LoRA's FLOPs, HFU what was recomputed too, over: {', '.join(basis)}. Largest ceiling measured "
            f"with matrix products in the same processes: {ceiling:,.0f} GFLOP/s a rank. On {where(first)}."
        )
    lines += [
        f"{record.case}, round {run.repeat + 1}: {run.error}" for record in records for run in record.runs if run.error
    ]
    return lines


def where(record: Record) -> str:
    """Device, threads and versions in one phrase."""
    device = record.runs[-1].facts.get("device", record.hardware["cpu"]) if record.runs else record.hardware["cpu"]
    threads = f", {record.config['threads']} threads a rank" if record.config.get("device") == "cpu" else ""
    return f"{device} ({record.hardware['cores']} cores{threads}), torch {record.versions.get('torch', '?')}"


def _cells(record: Record) -> list[str]:
    found = record.results
    if not found:
        return ["failed", *[""] * (len(COLUMNS) - 1)]
    rate = found["tokens_per_second"]
    return [
        f"{rate['median']:,.0f}",
        f"{rate['p10']:,.0f}-{rate['p90']:,.0f}",
        f"{found['raw_tokens_per_second']:,.0f}",
        f"{found['supervised_tokens_per_second']:,.0f}",
        f"{found['tokens_per_second_per_rank']:,.0f}",
        f"{found['step_seconds']['median']:.3f}",
        *(f"{found[name]:.1%}" for name in ("mfu", "hfu", "share_of_ceiling")),
        f"{found['peak_memory_bytes'] / 2**30:.2f}",
        *(f"{found[f'share_waiting_for_{name}']:.1%}" for name in ("data", "communication", "checkpoints")),
        f"{found['first_loss']:.3f} > {found['last_loss']:.3f}",
        f"{found['grad_norm']:.3g}",
    ]

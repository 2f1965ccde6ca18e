"""Lays out the answer of `gemfleet plan` as a table, in GiB."""

from __future__ import annotations

from .fleet import GIB, Row, SizingReport

WIDE_TABLE = 112  # width in cells of the table with all parts


def table_rows(report: SizingReport, width: int = WIDE_TABLE) -> tuple[list[str], list[list[str]]]:
    """Headings and cells: one line for each strategy, with a mark at the chosen one.

    width: cells of a line; below `WIDE_TABLE` the column `other` sums the smaller parts
    """
    columns = ["strategy", "weights", "adapters", "grads", "AdamW", "activations", "logits", "comm", "rest", "GiB"]
    columns += ["fits", "tokens/s/GPU", "of ceiling"]
    rows = [_cells(row, row.sharing.name == report.choice.sharing.name, width >= WIDE_TABLE) for row in report.rows]
    if width < WIDE_TABLE:
        columns = ["strategy", "weights", "activations", "other", "GiB", "fits", "tokens/s/GPU", "of ceiling"]
    return columns, rows


def _cells(row: Row, chosen: bool, wide: bool) -> list[str]:
    m = row.memory
    shared, rest, work = m.gathered + m.communication, m.runtime, m.activations + m.transient
    small = (m.adapters, m.gradients, m.optimizer)
    parts = (
        (m.weights, *small, work, m.logits, shared, rest)
        if wide
        else (m.weights, work, sum(small) + m.logits + shared + rest)
    )
    speed = [f"{row.speed.expected:,.0f}", f"{row.speed.share_of_ceiling:.0%}"] if row.fits else ["", ""]
    return [
        row.sharing.name + (" *" if chosen else ""),
        *(f"{part / GIB:.2f}" for part in parts),
        f"{m.total / GIB:.1f}",
        "yes" if row.fits else "no",
        *speed,
    ]

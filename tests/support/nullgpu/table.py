"""What the tests on pretended GPUs keep for the tables at the end of their output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from .counters import host_waits

CASES: list[tuple[str, ...]] = []
STEPS: list[tuple[str, ...]] = []
HEADERS = {
    "cases": ("case", "result", "seconds"),
    "steps": ("step of", "ranks", "passes", "launches", "matmuls", "collectives", "host waits", "pageable", "retries"),
}


def tell_step(name: str, ranks: int, passes: int, counted: Counter[str], retries: int) -> None:
    """One row: what a step did once everything was warm."""
    figures = (passes, counted["launches"], counted["matmuls"], counted["collectives"], host_waits(counted))
    STEPS.append((name, str(ranks), *map(str, figures), str(counted["pageable_copies"]), str(retries)))


def print_tables(write: Callable[[str], None]) -> None:
    """Both tables, where they have rows."""
    for name, rows in (("cases", CASES), ("steps", STEPS)):
        if rows:
            write("\n".join(_table(HEADERS[name], rows)) + "\n")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]

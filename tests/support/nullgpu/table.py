"""What the tests on pretended GPUs keep for the tables at the end of their output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from support.nullgpu.counters import host_waits

CASE, COUNT = "nullgpu case", "nullgpu count"
ROWS: dict[str, list[tuple[str, ...]]] = {CASE: [], COUNT: []}  # of all cases, in the process that prints
_COUNTED: list[tuple[str, ...]] = []  # by the case that runs
HEADERS = {
    CASE: ("case", "result", "seconds"),
    COUNT: (
        "step or pass",
        "ranks",
        "passes",
        "launches",
        "matmuls",
        "collectives",
        "host waits",
        "pageable",
        "retries",
        "ms",
    ),
}


def tell_step(name: str, ranks: int, counted: Counter[str], retries: int) -> None:
    """One row: what a step did once everything was warm."""
    _COUNTED.append((f"step, {name}", str(ranks), str(counted["passes"]), *_figures(counted), str(retries), ""))


def tell_pass(name: str, counted: Counter[str], milliseconds: float) -> None:
    """One row: what a pass did, and the host's time for it."""
    _COUNTED.append((name, "1", "1", *_figures(counted), "", f"{milliseconds:.0f}"))


def taken_counts() -> list[tuple[str, ...]]:
    """The rows since the last call."""
    taken = _COUNTED.copy()
    _COUNTED.clear()
    return taken


def _figures(counted: Counter[str]) -> tuple[str, ...]:
    figures = (counted["launches"], counted["matmuls"], counted["collectives"], host_waits(counted))
    return (*map(str, figures), str(counted["pageable_copies"]))


def print_tables(write: Callable[[str], None]) -> None:
    """Both tables, where they have rows."""
    for name, rows in ROWS.items():
        if rows:
            write("\n".join(_table(HEADERS[name], rows)) + "\n")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]

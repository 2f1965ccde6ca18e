"""What a suite has to say, described once: the terminal, Markdown, the page and the pictures are made from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import rich.table
from rich.console import Console

from .record import Record

GIB = 2**30


class Series(NamedTuple):
    """x: names for bars, numbers for lines; low, high: ends of error bars. ideal: drawn dashed and grey."""

    name: str
    x: Sequence[str] | Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    ideal: bool = False


class Chart(NamedTuple):
    """name: of its file"""

    name: str
    title: str
    kind: Literal["bar", "stack", "line"]
    x_title: str
    y_title: str
    series: Sequence[Series]


class Table(NamedTuple):
    """The first column is text, the others are figures. shown: columns that a terminal has room for; empty: all."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    shown: Sequence[str] = ()


class Section(NamedTuple):
    """What one suite has to say. `taken`: where, when and from which source its records were taken."""

    title: str
    taken: str
    tables: Sequence[Table]
    charts: Sequence[Chart] = ()
    notes: Sequence[str] = ()


def taken(records: Sequence[Record]) -> str:
    """Machine, versions, sources and days of all records in one sentence; several of a kind are all told."""

    def several(values: Iterable[str]) -> str:
        return " and ".join(dict.fromkeys(values))

    def where(record: Record) -> str:
        cpu = f"{record.hardware.get('cpu', 'CPU')} ({record.hardware.get('cores', '?')} cores)"
        return ", ".join(record.hardware.get("gpus") or [cpu])

    torch = several(record.versions["torch"] for record in records if "torch" in record.versions) or "unknown"
    commits = several((record.git_commit or "no repository")[:12] for record in records)
    load = max(record.hardware.get("load_average_at_start", [0.0])[0] for record in records)
    days = several(record.finished_at[:10] for record in records)
    return f"On {several(map(where, records))}; torch {torch}; source {commits}; {days}; load average up to {load:g}."


def plain_section(records: Sequence[Record]) -> Section:
    """Figures as they are."""
    found = {record.case: flattened(record.results) for record in records}
    tables = [Table((case, "figure"), [list(entry) for entry in figures.items()]) for case, figures in found.items()]
    return Section(f"Suite {records[0].suite}", taken(records), tables)


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Figures by dotted names; long lists are left to the records."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flattened(value, f"{prefix}{name}.")
        elif len(text := f"{value:,.4g}" if isinstance(value, float) else str(value)) <= 80:
            found[f"{prefix}{name}"] = text
    return found


def print_section(console: Console, section: Section) -> None:
    """Tables and notes on a terminal."""
    for table in section.tables:
        shown = [n for n, name in enumerate(table.columns) if n == 0 or not table.shown or name in table.shown]
        drawn = rich.table.Table(title=section.title)
        for n in shown:
            drawn.add_column(table.columns[n], justify="right" if n else "left", overflow="fold")
        for row in table.rows:
            drawn.add_row(*(row[n] for n in shown))
        console.print(drawn)
    for line in section.notes:
        console.print(line, highlight=False)


def markdown(section: Section, pictures: bool = False) -> str:
    """The section as Markdown. pictures: whether the charts' files lie beside it."""
    lines = [f"## {section.title}", "", section.taken, ""]
    for table in section.tables:
        cells = [[cell.replace("|", "\\|") for cell in row] for row in (table.columns, *table.rows)]
        head, *rows = ["| " + " | ".join(row) + " |" for row in cells]
        lines += [head, "|---|" + "---:|" * (len(table.columns) - 1), *rows, ""]
    lines += [line for note in section.notes for line in (note, "")]
    for chart in section.charts if pictures else ():
        lines += [f"![{chart.title}]({chart.name}.png)", ""]
    return "\n".join(lines)

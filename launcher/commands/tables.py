"""Prints tables and sentences for people, in the width of their terminal."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

NO_WIDTH = 400  # cells of an output that is no terminal, so that lines for programs are never folded


def open_console() -> Console:
    """Standard output. Where it is no terminal, it is wider than any line."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, NO_WIDTH)
    return console


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[str | Text]], folding: Collection[str] | None = None
) -> None:
    """Print a table. folding: the columns whose cells may take several lines; None: the first column"""
    from rich import box
    from rich.table import Table

    may_fold = columns[:1] if folding is None else folding
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column not in may_fold)
    for row in rows:
        table.add_row(*row)
    open_console().print(table)


def print_text(text: str) -> None:
    """Print sentences. On a terminal, lines break between words."""
    console = open_console()
    console.print(text, markup=False, emoji=False, soft_wrap=not console.is_terminal)


def print_facts(facts: Mapping[str, str]) -> None:
    """Print a line for each name and its value. A long value continues below its beginning."""
    from rich.table import Table
    from rich.text import Text

    console = open_console()
    if not console.is_terminal:
        for name, value in facts.items():
            console.print(f"{name:12} {value}", markup=False, emoji=False, soft_wrap=True)
        return
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True, min_width=12)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(Text(name), Text(value))
    console.print(table)

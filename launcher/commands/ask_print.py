"""Shows answers as they come: one after the other, or beside those of the untrained base."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence

import typer
from gemfleet.cluster.redaction import printable
from gemfleet.launcher.ask.answerer import Answers, Sampling
from gemfleet.train.data.shapes.conversation import Message
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .tables import open_console

BASE_NAME = "the untrained base"
WIDE = 100  # cells of a terminal from which on two answers stand beside each other


class Printer:
    """Asks and prints. name: of what was trained; base: whether the untrained base answers, too"""

    def __init__(self, answers: Answers, sampling: Sampling, name: str, base: bool) -> None:
        self._answers, self._sampling, self._name, self._base = answers, sampling, name, base

    def json(self, messages: Sequence[Message]) -> None:
        """Print a line of JSON with the question and its answers."""
        facts = {"model": self._name, "question": _text(messages), "answer": "".join(self._pieces(messages, False))}
        if self._base:
            facts["base_answer"] = "".join(self._pieces(messages, True))
        typer.echo(json.dumps(facts, ensure_ascii=False))

    def show(self, messages: Sequence[Message], titled: bool) -> None:
        """Print the answers as they come. titled: below the question"""
        console = open_console()
        if titled:
            console.print(Text(printable(_text(messages)).strip(), style="bold"))
        if self._base and console.is_terminal and console.width >= WIDE:
            self._show_beside(messages)
        else:
            for base in (True, False) if self._base else (False,):
                if self._base:
                    console.print(Text(f"{BASE_NAME if base else self._name}:", style="cyan"))
                stream(self._pieces(messages, base))
        if titled:
            console.print()

    def _show_beside(self, messages: Sequence[Message]) -> None:
        texts = ["", ""]
        with Live(console=open_console(), auto_refresh=False, vertical_overflow="ellipsis") as live:
            for number, base in enumerate((True, False)):
                for piece in self._pieces(messages, base):
                    texts[number] += piece
                    live.update(beside((BASE_NAME, self._name), [(texts[0], texts[1])]), refresh=True)
            live.vertical_overflow = "visible"

    def _pieces(self, messages: Sequence[Message], base: bool) -> Iterator[str]:
        return self._answers.answer(messages, self._sampling, base)


def stream(pieces: Iterator[str]) -> str:
    """Print an answer as it comes, and the end of its line. Returns it."""
    said = ""
    for piece in pieces:
        said += piece
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return said


def beside(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of answers whose columns share the width."""
    from rich import box

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), expand=True, header_style="cyan")
    for column in columns:
        table.add_column(Text(column), overflow="fold", ratio=1)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _text(messages: Sequence[Message]) -> str:
    return "".join(messages[-1].parts)

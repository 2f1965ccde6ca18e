"""Shows answers as they come: one after the other, or beside those of the untrained base."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import typer
from gemfleet.cluster.redaction import printable
from gemfleet.launcher.ask.answerer import Answers, Sampling
from gemfleet.train.data.shapes.conversation import Message
from rich.cells import cell_len
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
                stream(self._pieces(messages, base), [])
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


def stream(pieces: Iterable[str], said: list[str]) -> None:
    """Print an answer as it comes, and the end of its line. On a terminal, lines break between words.

    said: gets the pieces, also where an error ends them
    """
    console = open_console()

    def noted() -> Iterator[str]:
        for piece in pieces:
            said.append(piece)
            yield piece

    for text in wrapped(noted(), console.width) if console.is_terminal else noted():
        sys.stdout.write(text)
        sys.stdout.flush()
    sys.stdout.write("\n")


def wrapped(pieces: Iterable[str], width: int) -> Iterator[str]:
    """The pieces, with a line break before each word that would go beyond `width` cells. A wide sign is a word."""
    column, gap, word = 0, "", ""
    for sign in chain(chain.from_iterable(pieces), " "):
        if word and (sign.isspace() or cell_len(sign) > 1 or cell_len(word[-1]) > 1):
            breaks = column + len(gap) > 0 and column + cell_len(gap + word) > width
            yield f"\n{word}" if breaks else gap + word
            column = cell_len(word) if breaks else column + cell_len(gap + word)
            gap, word = "", ""
        if sign == "\n":
            yield sign
            column, gap = 0, ""
        elif sign.isspace():
            gap += sign
        else:
            word += sign


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
    return "".join(messages[-1].texts)

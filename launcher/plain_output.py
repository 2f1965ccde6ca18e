"""Keeps the terminal from obeying control sequences that come from data, models or other programs."""

from __future__ import annotations

import re
from io import TextIOWrapper
from typing import Any, TextIO, cast

from gemfleet.cluster.redaction import printable

# The sequences of our own bars and tables: colours, and moves within the lines that they have written.
OURS = re.compile(r"\x1b\[[0-9;]*[ABCDGHJKm]|\x1b\[\?25[hl]|\r")


class PlainOutput:
    """A text stream that makes all other control sequences visible text. Off a terminal, it does so with all."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if not self._stream.isatty():
            self._stream.write(printable(text.replace("\r\n", "\n")))
            return len(text)
        end = 0
        for found in OURS.finditer(text):
            self._stream.write(printable(text[end : found.start()]) + found[0])
            end = found.end()
        self._stream.write(printable(text[end:]))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def plain(stream: TextIO) -> TextIO:
    """The stream, guarded. A guarded one stays as it is. What its encoding lacks is written as a number, too."""
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream if isinstance(stream, PlainOutput) else cast(TextIO, PlainOutput(stream))

"""Reads the log files of a run in pieces, because they may be larger than memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from gemfleet.cluster.redaction import clean_text

PIECE_BYTES = 1 << 18
TAIL_BYTES = 4 << 20  # `tail` looks back this far at most, over all files together
SEARCH_BYTES = 32 << 20  # and so far where it looks for a text
LINE_CHARACTERS = 16_384  # a longer line is cut off here
LINE_BYTES = 1 << 20  # a longer line is read in parts


class LogReader:
    """Reads `driver.log` and `rank-<n>.log` of a folder. Each call goes on where the one before stopped.

    rank: reads the file of this rank only
    contains: gives only lines with this text, in capitals or not; it is not looked for in what is hidden in a line
    """

    def __init__(self, folder: Path, rank: int | None = None, contains: str = "") -> None:
        self._folder = folder
        self._contains = contains.lower()
        self._pattern = "*.log" if rank is None else f"rank-{rank}.log"
        self._offsets: dict[Path, int] = {}

    def tail(self, count: int) -> Iterator[tuple[str, str]]:
        """The last `count` lines of each file, as (source, line). Fewer where the lines are very long."""
        paths = sorted(self._folder.glob(self._pattern))
        most_lines, most_bytes = (sys.maxsize, SEARCH_BYTES) if self._contains else (count, TAIL_BYTES)
        for path in paths:
            with path.open("rb") as file:
                begin, end = _last_lines(file, most_lines, max(PIECE_BYTES, most_bytes // len(paths)))
                self._offsets[path] = end
                file.seek(begin)
                text = file.read(end - begin)
            yield from ((path.stem, line) for line in (self._found(text)[-count:] if count else ()))

    def new_lines(self) -> Iterator[tuple[str, str]]:
        """The whole lines written since the last call, as (source, line). A new file is read from its beginning."""
        for path in sorted(self._folder.glob(self._pattern)):
            while text := self._next_piece(path):
                yield from ((path.stem, line) for line in self._found(text))

    def _found(self, text: bytes) -> list[str]:
        """The lines that are wanted, cleaned."""
        if not self._contains:
            return _lines(text)
        near = [line for line in text.split(b"\n") if self._contains in line.decode("utf-8", "replace").lower()]
        return [line for line in _lines(b"\n".join(near)) if self._contains in line.lower()]

    def _next_piece(self, path: Path) -> bytes:
        """The next whole lines of a file, empty at its end. A line that is still being written comes next time."""
        offset = self._offsets.get(path, 0)
        with path.open("rb") as file:
            file.seek(offset)
            text = file.read(LINE_BYTES)
        whole = text[: text.rfind(b"\n") + 1]
        if not whole and len(text) == LINE_BYTES:
            whole = text
        self._offsets[path] = offset + len(whole)
        return whole


def _last_lines(file: BinaryIO, count: int, most_bytes: int) -> tuple[int, int]:
    """The positions where the last `count` whole lines begin and end. Searches from the end of the file."""
    size = file.seek(0, 2)
    first = max(0, size - most_bytes)
    end, begin, left = first, first, count + 1  # the end of the last line counts as one
    position = size
    while position > first and left:
        start = max(first, position - PIECE_BYTES)
        file.seek(start)
        piece = file.read(position - start)
        at = len(piece)
        while left and (at := piece.rfind(b"\n", 0, at)) >= 0:
            if left == count + 1:
                end = start + at + 1
            left -= 1
            if not left:
                begin = start + at + 1
        position = start
    return min(begin, end), end


def _lines(text: bytes) -> list[str]:
    """The lines without their ends. A part of a line that is too long counts as a line."""
    lines = text.decode("utf-8", "replace").removesuffix("\n").split("\n") if text else []
    return [clean_text(line[:LINE_CHARACTERS].rstrip("\r")) for line in lines]

"""Puts the lines of several log files into the order of their times."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from heapq import merge
from itertools import groupby
from operator import itemgetter

STAMP = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:[.,]\d+)?")
Line = tuple[str, str]


def by_time(lines: Iterable[Line]) -> Iterator[Line]:
    """Merge the lines of several files by the time at the beginning of each line.

    lines: (source, line) pairs, the lines of a file together
    A line without a time, as in a traceback, stays with the line above it. The lines of a file keep their order, also
    where its clock was set back. Lines of the same time keep the order of their files.
    """
    files = [_timed(list(group)) for _, group in groupby(lines, key=itemgetter(0))]
    return (line for _, line in merge(*files, key=itemgetter(0)))


def _timed(lines: list[Line]) -> list[tuple[str, Line]]:
    """Each line with its time. Lines before the first time belong to that time."""
    stamps = [found[0].replace("T", " ").replace(",", ".") if (found := STAMP.match(text)) else "" for _, text in lines]
    newest = next(filter(None, stamps), "")
    timed = []
    for stamp, line in zip(stamps, lines, strict=True):
        newest = max(newest, stamp)
        timed.append((newest, line))
    return timed


def log_stamp(seconds: float) -> str:
    """The local time in milliseconds, as in ranks' log lines. seconds: since the epoch"""
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(seconds))},{int(seconds % 1 * 1000):03}"

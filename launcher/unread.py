"""Lets a run go on when nobody can take its output: a closed pipe or terminal, or a full disk."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from .plain_output import plain

GONE = (errno.EPIPE, errno.EIO, errno.ENXIO, errno.EBADF)


class Forgiving(io.FileIO):
    """Writes to a descriptor of this process, and drops what cannot be written. After a reader has gone, drops all."""

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        try:
            return super().write(data) or size
        except OSError as error:
            if error.errno in GONE:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.fileno())
                os.close(nowhere)
            return size


@contextmanager
def output_may_go_unread() -> Iterator[None]:
    """Make standard output and error such streams while the block runs, if they have descriptors."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_forgiving(stream) for stream in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def _forgiving(stream: TextIO) -> TextIO:
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError, AttributeError):
        return stream  # a stand-in without a descriptor, for example in a test
    stream.flush()
    raw = Forgiving(descriptor, "wb", closefd=False)
    errors = stream.errors or "backslashreplace"
    return plain(io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, errors, line_buffering=True))

"""What a rank sends to the head at once, sorted by where it is kept, and the file that takes its log lines."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..redaction import clean_text

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Batch:
    """The records of a rank.

    events:  kind, message and data of each
    metrics: records of kind `step` and `eval`
    lines:   of the rank's log
    phases:  of the rank's process, see `Phases.taken`
    """

    events: Sequence[tuple[str, str, Record]]
    metrics: Sequence[Record]
    lines: Sequence[str]
    phases: Sequence[Record]

    @classmethod
    def sort(cls, records: Sequence[Record]) -> Batch:
        """Sorts records by their `kind`."""
        named = [(r, r.get("event", r["kind"])) for r in records if r["kind"] in ("event", "result")]
        return cls(
            [(name, str(record.get("message", name)), dict(record)) for record, name in named],
            [record for record in records if record["kind"] in ("step", "eval")],
            [record["line"] for record in records if record["kind"] == "log"],
            [record["line"] for record in records if record["kind"] == "phases"],
        )


@dataclass(frozen=True)
class BatchLog:
    """Lines for the file `<source>.log` in `folder`."""

    folder: Path
    source: str
    lines: Sequence[str]

    @property
    def path(self) -> Path:
        """The log's file."""
        return self.folder / f"{self.source}.log"

    def size(self) -> int:
        """The file's size in bytes; 0 when it is missing."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def append(self, kept: int) -> int:
        """Writes the lines behind the first `kept` bytes and cuts off what lay there. Returns the file's size then.

        A full disk costs whole log lines and raises nothing: a rank must not send its batch again for them.
        """
        if not self.lines:
            return kept
        with suppress(OSError):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                return self._append(descriptor, kept)
            finally:
                os.close(descriptor)
        return kept

    def _append(self, descriptor: int, kept: int) -> int:
        begin = min(kept, os.fstat(descriptor).st_size)
        os.ftruncate(descriptor, begin)
        data = "".join(f"{clean_text(line)}\n" for line in self.lines).encode(errors="replace")
        try:
            if os.pwrite(descriptor, data, begin) < len(data):
                raise OSError("the disk is full")
        except OSError:
            os.ftruncate(descriptor, begin)
            return begin
        return begin + len(data)

"""Reads server-sent events, as the API writes them (`sse.py`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Message:
    """One server-sent event. kind: `event`, `metric`, `line` or `end`; id: the position to go on after"""

    kind: str
    id: str
    data: dict[str, Any]


def parse_messages(lines: Iterator[str]) -> Iterator[Message]:
    """The messages of a `text/event-stream`. Drops a last message that is incomplete."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            if "data" in fields:
                yield Message(fields.get("event", "message"), fields.get("id", ""), json.loads(fields["data"]))
            fields = {}

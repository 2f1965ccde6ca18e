"""Reads server-sent events, as the API writes them (`sse.py`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Message:
    """One server-sent event: `event`, `metric`, `line` or `end`; `id` is where to go on after it."""

    kind: str
    id: str
    data: dict[str, Any]


def parse_messages(lines: Iterator[str]) -> Iterator[Message]:
    """Messages of a `text/event-stream`. One that broke off before its end is none."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            if "data" in fields:
                yield Message(fields.get("event", "message"), fields.get("id", ""), json.loads(fields["data"]))
            fields = {}

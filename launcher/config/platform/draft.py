"""The configuration while the conversion puts it together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Draft:
    """fields: values by the dotted name of the field; because: the request's keys that decide each
    notes, problems: sentences for the person
    """

    fields: dict[str, Any] = field(default_factory=dict)
    because: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def put(self, target: str, value: Any, *keys: str) -> None:
        self.fields[target], self.because[target] = value, keys

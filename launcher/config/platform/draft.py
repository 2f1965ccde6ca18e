"""What a request decides, as it comes together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Draft:
    """fields: values by dotted target; because: the request's keys behind each; notes and problems: sentences."""

    fields: dict[str, Any] = field(default_factory=dict)
    because: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def put(self, target: str, value: Any, *keys: str) -> None:
        self.fields[target], self.because[target] = value, keys

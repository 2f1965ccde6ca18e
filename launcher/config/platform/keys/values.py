"""Reads one value of a request: says what is accepted, what it becomes, and what is refused with which remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from gemfleet.train.config.errors import shown

NOTHING = frozenset({"", "none", "null"})
WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class ValueRefusedError(ValueError):
    """Why a value cannot be used, and what to give in its place. The caller names the key."""


class Reader(Protocol):
    """Reads a value that says something (see `is_nothing`)."""

    def read(self, value: Any) -> Any:
        """The value as meant. Raises ValueRefusedError."""
        ...

    def accepts(self) -> str:
        """What may be given, in words."""
        ...


def is_nothing(value: Any) -> bool:
    """Whether a value says nothing: null, or a text such as "None", "null" or ""."""
    return value is None or (isinstance(value, str) and value.strip().lower() in NOTHING)


@dataclass(frozen=True)
class Text:
    """A text of one line. what: its name in messages"""

    what: str = "a text"

    def read(self, value: Any) -> str:
        if not isinstance(value, str) or any(ord(c) < 32 or 0xD800 <= ord(c) <= 0xDFFF for c in value):
            raise ValueRefusedError(f"found {shown(value)}; give {self.what}")
        return value.strip()

    def accepts(self) -> str:
        return self.what


@dataclass(frozen=True)
class Flag:
    """True or false, also as a text. refused_when: the value that is refused, with `remedy`"""

    refused_when: bool | None = None
    remedy: str = ""

    def read(self, value: Any) -> bool:
        flag = WORDS.get(value.strip().lower()) if isinstance(value, str) else value
        if not isinstance(flag, bool):
            raise ValueRefusedError(f"found {shown(value)}; give true or false")
        if flag is self.refused_when:
            raise ValueRefusedError(f"found {shown(value)}; {self.remedy}")
        return flag

    def accepts(self) -> str:
        return "true or false" if self.refused_when is None else str(not self.refused_when).lower()


@dataclass(frozen=True)
class Number:
    """A finite number, also as a text. low, high: inclusive bounds; above: an exclusive one"""

    whole: bool = False
    low: float | None = None
    high: float | None = None
    above: float | None = None

    def read(self, value: Any) -> int | float:
        number = value
        if isinstance(value, str):
            try:
                number = float(value)
            except ValueError:
                number = None
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not self._fits(number):
            raise ValueRefusedError(f"found {shown(value)}; give {self.accepts()}")
        return int(number) if self.whole else float(number)

    def _fits(self, number: int | float) -> bool:
        if isinstance(number, int) and abs(number) >= 2**63:
            return False
        return (
            math.isfinite(number)
            and (not self.whole or number == int(number))
            and (self.low is None or number >= self.low)
            and (self.high is None or number <= self.high)
            and (self.above is None or number > self.above)
        )

    def accepts(self) -> str:
        bounds = [(self.above, "above"), (self.low, "of at least"), (self.high, "of at most")]
        words = [f"{word} {bound:g}" for bound, word in bounds if bound is not None]
        return " ".join(["a whole number" if self.whole else "a number", " and ".join(words)]).strip()


@dataclass(frozen=True)
class Choice:
    """One of some words. accepted: the meaning of each; refused: the remedies for known others; remedy: for the rest"""

    accepted: Mapping[str, Any]
    refused: Mapping[str, str] = field(default_factory=dict)
    remedy: str = ""

    def read(self, value: Any) -> Any:
        word = value.strip().lower() if isinstance(value, str) else value
        if isinstance(word, str) and word in self.accepted:
            return self.accepted[word]
        remedy = self.refused.get(word, self.remedy) if isinstance(word, str) else ""
        raise ValueRefusedError(f"found {shown(value)}; {remedy or f'give {self.accepts()}'}")

    def accepts(self) -> str:
        return ", ".join(f"`{word}`" for word in self.accepted)


@dataclass(frozen=True)
class Names:
    """`all-linear`, or module names as a list or separated by commas."""

    def read(self, value: Any) -> str | list[str]:
        if isinstance(value, str) and value.strip().lower() == "all-linear":
            return "all-linear"
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(n, str) and n.strip().isprintable() for n in names):
            raise ValueRefusedError(f"found {shown(value)}; give {self.accepts()}")
        wanted = [name.strip() for name in names if name.strip()]
        if not wanted:
            raise ValueRefusedError(f"found {shown(value)}, which names no module; give {self.accepts()}")
        return wanted

    def accepts(self) -> str:
        return "`all-linear`, or module names as a list or separated by commas"


@dataclass(frozen=True)
class Anything:
    """Any value; nothing reads it."""

    def read(self, value: Any) -> Any:
        return value

    def accepts(self) -> str:
        return "anything"

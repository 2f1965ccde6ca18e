"""Reads the keys of a request, and collects the problems of those that cannot be used."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gemfleet.train.config.errors import shown

from .keys.table import GROUPS, TABLE
from .keys.values import ValueRefusedError, is_nothing


@dataclass
class Request:
    """values: of keys that say something; said_nothing: the other keys (see `is_nothing`); problems: one line each"""

    values: dict[str, Any] = field(default_factory=dict)
    said_nothing: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    def get(self, name: str) -> Any:
        """The key's value, or the table's default if the request has none."""
        return self.values.get(name, TABLE[name].default)

    def has(self, name: str) -> bool:
        return name in self.values


def read_request(content: Mapping[Any, Any]) -> Request:
    """Read all keys by the table. Collects problems and raises none."""
    request = Request()
    for name, value in _leaves(content, request.problems):
        key = TABLE.get(name)
        if key is None:
            request.problems.append(f"{name}: unknown key{_suggestion(name)}")
        elif is_nothing(value):
            request.said_nothing.add(name)
        else:
            try:
                request.values[name] = key.reads.read(value)
            except ValueRefusedError as refusal:
                request.problems.append(f"{name}: {refusal}")
    return request


def _leaves(content: Mapping[Any, Any], problems: list[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted name and the value of each key. A section that is no mapping is a problem, unless it says nothing."""
    for key, value in content.items():
        if not isinstance(key, str):
            problems.append(f"{prefix}{shown(key)}: a key that is not a text; remove it")
            continue
        name = prefix + key
        if name in GROUPS:
            if isinstance(value, Mapping):
                yield from _leaves(value, problems, f"{name}.")
            elif not is_nothing(value):
                problems.append(f"{name}: found {shown(value)}; give a section with its keys")
        else:
            yield name, value


def _suggestion(name: str) -> str:
    close = difflib.get_close_matches(name, TABLE, 1, cutoff=0.8)
    if not close:
        last = name.rpartition(".")[2]
        close = [known for known in TABLE if known.rpartition(".")[2] == last][:1]
    return f"; did you mean `{close[0]}`?" if close else "; remove it, or see docs/platform.md for the keys there are"

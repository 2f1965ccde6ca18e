"""Writes a first configuration file. Each key has a comment, which comes from the field's description."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from gemfleet.train.config.errors import locate
from pydantic.fields import FieldInfo

from .schema import LaunchConfig

SCHEMA_LINE = "# yaml-language-server: $schema=gemfleet.schema.json"
HEAD = """\
# A run of gemfleet. See what it would do: gemfleet train FILE --dry-run; begin: gemfleet train FILE
# Keys that are left out have defaults; `gemfleet schema > gemfleet.schema.json` lists all of them.
"""
COMMENT_CELLS = 100


def starter_file(values: Mapping[str, Any], name: str) -> str:
    """YAML that `load_config` reads, with a comment above each key.

    values: by the dotted path of a key, in the order of sections; None: the default; name: the file's, for its head
    """
    lines = [SCHEMA_LINE, *HEAD.replace("FILE", name).splitlines()]
    before: list[str] = []
    for path, value in values.items():
        *sections, key = path.split(".")
        for depth, section in enumerate(sections):
            if before[: depth + 1] != sections[: depth + 1]:
                lines += [*([""] if depth == 0 else []), f"{'  ' * depth}{section}:"]
        before = sections
        indent = "  " * len(sections)
        lines += [f"{indent}# {comment}" for comment in _comment(path)]
        lines.append(f"{indent}{key}: {_scalar(_field(path).default if value is None else value)}")
    return "\n".join(lines) + "\n"


def _comment(path: str) -> Iterator[str]:
    """The lines of comment for the field at a dotted path. None where the field has no description."""
    field = _field(path)
    default = "" if field.is_required() or field.default is None else f"; default {_scalar(field.default)}"
    if field.description:
        yield from textwrap.wrap(f"{field.description}{default}", COMMENT_CELLS)


def _field(path: str) -> FieldInfo:
    field = locate(path.split("."), LaunchConfig)[2]
    assert field is not None, path
    return field


def _scalar(value: Any) -> str:
    """One value on one line."""
    return (
        yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000).removesuffix("...\n").strip()
    )

"""A first configuration file with a comment to each key, from the meanings that the configuration's own fields have."""

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
    """YAML that `load_config` reads, each key below a comment with its meaning.

    values: by the dotted path of a key, sections together, None for its default; name: of the file, for its head
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
    """What the field at a dotted path means; nothing where its name says it."""
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

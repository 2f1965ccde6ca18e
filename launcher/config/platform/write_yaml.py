"""Writes a converted request as a configuration file. A comment on each line names the request's keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from gemfleet.train.config.load import parse_yaml

from .convert import Conversion


def to_yaml(conversion: Conversion, source: str) -> str:
    """YAML that `gemfleet train` reads to the same configuration as the request. source: the request's name"""
    head = [f"# Made from {source} by `gemfleet convert`. What is not named here has gemfleet's own default."]
    head += [f"# Note: {note}" for note in conversion.notes]
    return "\n".join([*head, "", *_lines(conversion.content, conversion.because)]) + "\n"


def _lines(section: Mapping[str, Any], because: Mapping[str, tuple[str, ...]], prefix: str = "") -> Iterator[str]:
    indent = "  " * prefix.count(".")
    for name, value in section.items():
        if isinstance(value, dict):
            yield f"{indent}{name}:"
            yield from _lines(value, because, f"{prefix}{name}.")
        else:
            text = f"{indent}{name}: {_scalar(value)}"
            yield f"{text:<44}  # {', '.join(because[prefix + name])}"


def _scalar(value: Any) -> str:
    """A value on one line of YAML. A text that could be read as something else is quoted."""
    text = _flow(value)
    try:
        same = parse_yaml(text) == value
    except (ValueError, yaml.YAMLError):
        same = False
    return text if same else _flow(value, style='"')


def _flow(value: Any, style: str | None = None) -> str:
    text = yaml.safe_dump([value], default_flow_style=True, default_style=style, allow_unicode=True, width=10**6)
    return text.strip()[1:-1].strip()

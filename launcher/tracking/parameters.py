"""The settings of a run as a tracker's parameters: flat and without secrets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import yaml
from gemfleet.cluster.redaction import redact

LEFT_OUT = ("api", "trackers", "notify")  # of the head, not of the result


def parameters_of(text: str) -> dict[str, Any]:
    """The values of a run's configuration by dotted name, in its order. text: YAML with every value spelled out"""
    content = {key: value for key, value in yaml.safe_load(text).items() if key not in LEFT_OUT}
    return dict(_flat(redact(content), ""))


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{name}.{index}")
    elif isinstance(value, dict | list):
        yield name, json.dumps(value)
    elif value is not None:
        yield name, value

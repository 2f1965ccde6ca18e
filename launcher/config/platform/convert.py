"""Converts the platform's request to a run's configuration.

A pure function, but for `exists` and `context`, which look at folders of this machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemfleet.launcher.config.schema import LaunchConfig
from pydantic import ValidationError

from .combine import COMBINATIONS
from .combine_places import Context, Exists, check_context, combine_places, context_of, path_exists
from .draft import Draft
from .keys.table import TABLE
from .request import Request, read_request
from .validate import problems_in_the_requests_words


@dataclass(frozen=True)
class Conversion:
    """What a request becomes.

    content:  the fields of the configuration that the request decides, as nested mappings
    because:  the request's keys that decide each dotted field
    notes:    what a person should know
    problems: why the request cannot be used, one line each
    """

    content: dict[str, Any]
    because: dict[str, tuple[str, ...]]
    notes: tuple[str, ...]
    problems: tuple[str, ...]


def convert(content: Mapping[Any, Any], exists: Exists = path_exists, context: Context = context_of) -> Conversion:
    """Convert a request. Collects all problems and raises none."""
    request = read_request(content)
    draft = Draft()
    combine_places(request, draft, exists)
    for name, key in TABLE.items():
        if key.how == "alone" and request.has(name):
            draft.put(key.target, request.get(name), name)
    for combine in COMBINATIONS:
        combine(request, draft)
    check_context(draft, context)
    nested = _nested(draft.fields)
    problems = [*request.problems, *draft.problems]
    try:
        LaunchConfig.model_validate(nested)
    except ValidationError as error:
        problems += problems_in_the_requests_words(error, draft.because, problems)
    return Conversion(nested, draft.because, (*draft.notes, *_unused(request)), tuple(problems))


def _unused(request: Request) -> list[str]:
    names = [name for name, key in TABLE.items() if key.how == "unused" and request.has(name)]
    return [f"not used by supervised fine-tuning here: {', '.join(names)}"] if names else []


def _nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Nested sections of dotted names, in the order of the configuration's own fields."""
    content: dict[str, Any] = {}
    order = {name: place for place, name in enumerate(LaunchConfig.model_fields)}
    for target in sorted(fields, key=lambda name: order.get(name.partition(".")[0], len(order))):
        *sections, last = target.split(".")
        inner = content
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = fields[target]
    return content

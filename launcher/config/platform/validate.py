"""Puts the problems that the configuration's own validation finds in a converted request into the request's words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from gemfleet.launcher.config.schema import LaunchConfig
from gemfleet.train.config.errors import explain
from pydantic import ValidationError


def problems_in_the_requests_words(
    error: ValidationError, because: Mapping[str, tuple[str, ...]], known: Sequence[str]
) -> list[str]:
    """A line for each problem, with the request's keys. None for fields that a `known` problem has left out."""
    lines = []
    for line in explain(error, LaunchConfig):
        path, _, sentence = line.partition(": ")
        keys = because.get(path.partition("[")[0]) or _keys_named_in(sentence, because)
        if not keys:
            if not (known and sentence.startswith("missing")):
                lines.append(line)
        elif sentence.startswith("unknown key"):
            lines.append(f"{keys[0]}: needs {path}, which this version does not have; remove the key or set it to null")
        elif path.partition("[")[0] in because:
            lines.append(f"{keys[0]} ({path}): {sentence}")
        else:
            lines.append(f"{', '.join(keys)}: {sentence}")
    return lines


def _keys_named_in(sentence: str, because: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The request's keys that decide the fields which a sentence about a whole section names."""
    words = set(re.findall(r"[a-z_0-9]+(?:\.[a-z_0-9]+)+", sentence))
    found = [keys[0] for target, keys in because.items() if keys and {target, target.removeprefix("train.")} & words]
    return tuple(dict.fromkeys(found))

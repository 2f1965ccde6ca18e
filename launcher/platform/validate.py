"""What the configuration's own validation found in a converted request, in the request's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gemfleet.train.config_errors import explain
from pydantic import ValidationError

from ..config import LaunchConfig


def problems_in_the_requests_words(
    error: ValidationError, because: Mapping[str, tuple[str, ...]], known: Sequence[str]
) -> list[str]:
    """One line a problem, naming the request's keys; none for fields that a known problem has left out already."""
    lines = []
    for line in explain(error, LaunchConfig):
        path, _, sentence = line.partition(": ")
        keys = because.get(path.partition("[")[0])
        if keys is None:
            if not (known and sentence.startswith("missing")):
                lines.append(line)
        elif sentence.startswith("unknown key"):
            lines.append(f"{keys[0]}: needs {path}, which this version does not have; remove the key or set it to null")
        else:
            lines.append(f"{keys[0]} ({path}): {sentence}")
    return lines

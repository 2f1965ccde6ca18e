"""Keeps secrets, control characters and numbers that JSON lacks out of answers."""

from __future__ import annotations

import math
from typing import Any

from gemfleet.cluster import redaction

HIDDEN = redaction.HIDDEN
redact_text = redaction.clean_text


def redact(value: Any) -> Any:
    """The same JSON value without secrets. NaN and infinities, which JSON lacks, become null."""
    return _finite(redaction.redact(value))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

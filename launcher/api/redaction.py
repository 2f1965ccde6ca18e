"""Keeps secrets and control characters out of answers, and what JSON lacks."""

from __future__ import annotations

import math
from typing import Any

from gemfleet.cluster import redaction

HIDDEN = redaction.HIDDEN
redact_text = redaction.clean_text


def redact(value: Any) -> Any:
    """A JSON value of the same shape without secrets; numbers that JSON lacks (NaN, infinities) become null."""
    return _finite(redaction.redact(value))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

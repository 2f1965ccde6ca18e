"""Keeps secrets out of answers: hub tokens, passwords in addresses, and values whose key says that they are secret."""

from __future__ import annotations

import math
import re
from typing import Any

HIDDEN = "[hidden]"
SECRET_KEY = re.compile(r"(^|[_-])(token|secret|password|passwd|credential|credentials|api_?key|private_?key)s?$", re.I)
SECRET_TEXTS = (
    re.compile(r"\bhf_[A-Za-z0-9]{20,}"),
    re.compile(r"\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_[A-Za-z0-9_]{20,}|\bglpat-[A-Za-z0-9_-]{16,}"),
    re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"),
    re.compile(r"(?<=://)[^/\s:@]{12,}(?=@)"),
    re.compile(r"(?i)(?<=bearer )[A-Za-z0-9._~+/=-]{8,}"),
    re.compile(r"(?i)(?<=[?&]token=)[^&\s]+"),
)
ASSIGNMENT = re.compile(r"(?i)\b([A-Z0-9_]*(?:TOKEN|SECRET|PASSWORD|API_?KEY)\b[\"']?\s*[=:]\s*[\"']?)([^\s\"',;]{6,})")


def redact_text(text: str) -> str:
    """The text with what looks like a credential replaced."""
    for pattern in SECRET_TEXTS:
        text = pattern.sub(HIDDEN, text)
    return ASSIGNMENT.sub(lambda found: found[1] + HIDDEN, text)


def redact(value: Any) -> Any:
    """A JSON value of the same shape without secrets; numbers that JSON lacks (NaN, infinities) become null."""
    if isinstance(value, dict):
        return {key: HIDDEN if _is_secret(key, inner) else redact(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact(inner) for inner in value]
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _is_secret(key: Any, value: Any) -> bool:
    return isinstance(key, str) and isinstance(value, str) and bool(value) and bool(SECRET_KEY.search(key))

"""Finds what a submitted configuration may not say, so that a request opens only allowed files and connections."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from .allowed import Allowed, is_below_address, listed, rule_of

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# These sections make DeepSpeed write files, send figures elsewhere, or start programs.
DEEPSPEED_REFUSED = frozenset(
    {
        "tensorboard",
        "wandb",
        "comet",
        "csv_monitor",
        "monitor",
        "autotuning",
        "nebula",
        "data_efficiency",
        "hybrid_engine",
    }
)
LARGEST_NUMBER = 2**63 - 1
MAX_DEPTH = 12
DEEPSPEED_SECTION = "train.deepspeed.config"


def refused(content: Mapping[str, Any], allowed: Allowed) -> Iterator[tuple[str, str]]:
    """(field, reason) of each value in a configuration that a request may not give."""
    yield from _refused(content, "", allowed, 0)
    yield from _delivery_problem(content, allowed)
    yield from _tracker_problems(content, allowed)
    yield from _picture_problem(content)


def _refused(value: Any, where: str, allowed: Allowed, depth: int) -> Iterator[tuple[str, str]]:
    if depth > MAX_DEPTH:
        yield where, "nested too deeply to be a configuration"
    elif isinstance(value, dict):
        if where == DEEPSPEED_SECTION:
            yield from _deepspeed_problems(value)
        for key, inner in value.items():
            if reason := _unwritable(str(key)):
                yield where, f"has a key that {reason}"
            yield from _refused(inner, f"{where}.{key}" if where else str(key), allowed, depth + 1)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _refused(inner, f"{where}[{index}]", allowed, depth + 1)
    elif isinstance(value, str) and (reason := _unwritable(value) or rule_of(where)(value, allowed)):
        yield where, reason
    elif isinstance(value, float | int) and not isinstance(value, bool) and not _is_number(value):
        yield where, "give a finite number that fits into 64 bits"


def _is_number(value: float) -> bool:
    return math.isfinite(value) if isinstance(value, float) else abs(value) <= LARGEST_NUMBER


def _unwritable(text: str) -> str | None:
    """Why no configuration file can hold this text. None if one can."""
    if CONTROL.search(text):
        return "holds a control character; take it out"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "holds half of a surrogate pair, which is no text; take it out"
    return None


def _deepspeed_problems(section: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key in sorted(DEEPSPEED_REFUSED.intersection(section)):
        reason = "writes files or connects to others, which a submitted run may not; leave it out"
        yield f"{DEEPSPEED_SECTION}.{key}", reason


def _delivery_problem(content: Mapping[str, Any], allowed: Allowed) -> Iterator[tuple[str, str]]:
    """Refuse a delivery that is not below an allowed address (`git+…` for git, `hub:…` for the hub)."""
    output = content.get("output")
    deliver = output.get("deliver") if isinstance(output, dict) else None
    if not isinstance(deliver, dict):
        return
    address = str(deliver.get("repository", ""))
    written = {"git": "git+", "hub": "hub:"}.get(str(deliver.get("type")), "") + address
    if not is_below_address(written, allowed.deliveries):
        reason = f"is not below an address that the API may deliver to ({listed(allowed.deliveries)})"
        yield "output.deliver.repository", reason


def _picture_problem(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Refuse addresses of pictures: the head would open what the rows name, in its own network too."""
    section: Any = content
    for key in ("train", "data", "pictures"):
        section = section.get(key) if isinstance(section, dict) else None
    if isinstance(section, dict) and section.get("addresses", False) is not False:
        yield "train.data.pictures.addresses", "opens what rows name, which a submitted run may not; bring the pictures"


def _tracker_problems(content: Mapping[str, Any], allowed: Allowed) -> Iterator[tuple[str, str]]:
    """Refuse a tracker that would use the head's own address or key, unless the head's owner allows it."""
    trackers = content.get("trackers")
    for index, tracker in enumerate(trackers if isinstance(trackers, list) else ()):
        if not isinstance(tracker, dict):
            continue
        where = f"trackers[{index}]"
        if tracker.get("type") == "mlflow" and not tracker.get("uri"):
            yield f"{where}.uri", "is missing; a submitted run names its server"
        if tracker.get("type") == "wandb" and tracker.get("mode") != "offline":
            place = f"wandb:{tracker.get('entity') or ''}/{tracker.get('project') or 'gemfleet'}"
            if not is_below_address(place, allowed.reports):
                known = listed(tuple(one for one in allowed.reports if one.startswith("wandb:")))
                yield where, f"is no ENTITY/PROJECT that the API may report to ({known}); name both"

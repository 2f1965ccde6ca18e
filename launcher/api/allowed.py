"""What the texts of a submitted configuration may name: a request opens no file and no connection that is not allowed.

Each field has its rule; one that has none here takes plain words only. The rules open nothing outside allowed folders.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .folders import leads_out, real_path

UNSAFE_SUFFIXES = (".bin", ".ckpt", ".dll", ".npy", ".npz", ".p", ".pickle", ".pkl", ".pt", ".pth", ".py", ".sh", ".so")
HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?", re.ASCII)
PACKAGED = re.compile(r"demo(:[a-z]+)?")
SCHEME = re.compile(r"^\s*[A-Za-z][A-Za-z0-9+.-]*:(//|:)|^[^\s/]*@[^\s/]+:")
LOOKS_LIKE_PATH = re.compile(r"^[~./\\]|\\|(^|/)\.\.(/|$)")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
DEEPSPEED_WORD = re.compile(r"[A-Za-z0-9_.+-]*")
# What these sections ask DeepSpeed to do: write files, send figures to others, or start programs.
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


@dataclass(frozen=True)
class Allowed:
    """What submitted configurations may name beside `demo` and hub ids.

    roots: folders of the head below which they may name paths
    sources: addresses below which models and data may be fetched, as `git+https://host/group` or `s3://bucket/data`
    deliveries: addresses below which results and checkpoints may be put; `hub:OWNER` for Hugging Face
    """

    roots: tuple[Path, ...] = ()
    sources: tuple[str, ...] = ()
    deliveries: tuple[str, ...] = ()


def refused(content: Mapping[str, Any], allowed: Allowed) -> Iterator[tuple[str, str]]:
    """(field, reason) of everything in a configuration that a request may not say."""
    yield from _refused(content, "", allowed, 0)
    yield from _delivery_problem(content, allowed)


def _refused(value: Any, where: str, allowed: Allowed, depth: int) -> Iterator[tuple[str, str]]:
    if depth > MAX_DEPTH:
        yield where, "nested too deeply to be a configuration"
    elif isinstance(value, dict):
        rule = _SECTIONS.get(where, _no_section_rule)
        yield from rule(value, where)
        for key, inner in value.items():
            if reason := _unwritable(str(key)):
                yield where, f"has a key that {reason}"
            yield from _refused(inner, f"{where}.{key}" if where else str(key), allowed, depth + 1)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _refused(inner, f"{where}[{index}]", allowed, depth + 1)
    elif isinstance(value, str):
        reason = _unwritable(value) or _TEXTS.get(where, _rule_below(where))(value, allowed)
        if reason:
            yield where, reason
    elif isinstance(value, float | int) and not isinstance(value, bool) and not _is_number(value):
        yield where, "give a finite number that fits into 64 bits"


def _is_number(value: float) -> bool:
    return math.isfinite(value) if isinstance(value, float) else abs(value) <= LARGEST_NUMBER


def _unwritable(text: str) -> str | None:
    """Why a text can be in no configuration file."""
    if CONTROL.search(text):
        return "holds a control character; take it out"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "holds half of a surrogate pair, which is no text; take it out"
    return None


def _free(text: str, allowed: Allowed) -> str | None:
    """A text that is compared with rows, and never opened."""
    return None


def _plain(text: str, allowed: Allowed) -> str | None:
    """A word or a name."""
    if text.lower().endswith(UNSAFE_SUFFIXES):
        return "names code or a pickle, which is never loaded"
    if LOOKS_LIKE_PATH.search(text):
        return "looks like a path, which this field does not take; give a name"
    return "looks like an address, which this field does not take; give a name" if SCHEME.match(text) else None


def _source(text: str, allowed: Allowed) -> str | None:
    """A model or data: packaged, on the hub, below an allowed folder, or at an allowed address."""
    if text.lower().endswith(UNSAFE_SUFFIXES):
        return "names code or a pickle, which is never loaded"
    if PACKAGED.fullmatch(text) or _is_below_address(text, allowed.sources):
        return None
    if LOOKS_LIKE_PATH.search(text):
        return _path(text, allowed)
    if HUB_ID.fullmatch(text):
        return None
    return f"is no hub id, and no address that the API may fetch from ({_listed(allowed.sources)})"


def _place(text: str, allowed: Allowed) -> str | None:
    """Where checkpoints rest."""
    if _is_below_address(text, allowed.deliveries):
        return None
    if text.startswith("/"):
        return _path(text, allowed)
    return f"is not below an address that the API may write to ({_listed(allowed.deliveries)})"


def _path(text: str, allowed: Allowed) -> str | None:
    """A path of the head: below an allowed folder, with all links in it."""
    path = real_path(text)
    if path is None or not any(path.is_relative_to(root) for root in map(real_path, map(str, allowed.roots)) if root):
        roots = ", ".join(map(str, allowed.roots)) or "none"
        return f"is outside the folders that the API may use ({roots}); give an absolute path below one"
    return leads_out(path, allowed.roots)


def _deepspeed(text: str, allowed: Allowed) -> str | None:
    """A text inside DeepSpeed's own configuration: its choices are words."""
    return None if DEEPSPEED_WORD.fullmatch(text) else "is no word of DeepSpeed's configuration; paths cannot be named"


def _deepspeed_section(section: dict[str, Any], where: str) -> Iterator[tuple[str, str]]:
    for key in sorted(DEEPSPEED_REFUSED.intersection(section)):
        yield f"{where}.{key}", "writes files or connects to others, which a submitted run may not; leave it out"


def _no_section_rule(section: dict[str, Any], where: str) -> Iterator[tuple[str, str]]:
    yield from ()


def _rule_below(where: str) -> Callable[[str, Allowed], str | None]:
    return _deepspeed if where.startswith("train.deepspeed.config.") else _plain


_TEXTS: dict[str, Callable[[str, Allowed], str | None]] = {
    "train.model": _source,
    "train.data.train": _source,
    "train.data.eval": _source,
    "train.deepspeed.config": _path,
    "cluster.storage": _place,
    "output.deliver.repository": _free,  # see _delivery_problem
    "predict.answer_after": _free,
}
_SECTIONS: dict[str, Callable[[dict[str, Any], str], Iterator[tuple[str, str]]]] = {
    "train.deepspeed.config": _deepspeed_section
}


def _delivery_problem(content: Mapping[str, Any], allowed: Allowed) -> Iterator[tuple[str, str]]:
    """The result goes to allowed places only. Git addresses are written `git+…` there, the hub's `hub:…`."""
    output = content.get("output")
    deliver = output.get("deliver") if isinstance(output, dict) else None
    if not isinstance(deliver, dict):
        return
    address = str(deliver.get("repository", ""))
    written = {"git": "git+", "hub": "hub:"}.get(str(deliver.get("type")), "") + address
    if not _is_below_address(written, allowed.deliveries):
        reason = f"is not below an address that the API may deliver to ({_listed(allowed.deliveries)})"
        yield "output.deliver.repository", reason


def _is_below_address(text: str, allowed: tuple[str, ...]) -> bool:
    """Whether an address is one of these or below one; nothing in it may climb up again, or be read as another."""
    address, _, branch = text.partition("#")
    if not re.fullmatch(r"[A-Za-z0-9+:/@._~=,-]+", address) or re.search(r"(^|[/:])\.\.?(/|$)", address):
        return False
    if branch and not re.fullmatch(r"[A-Za-z0-9._/-]+", branch):
        return False
    return any(address == one.rstrip("/") or address.startswith(_as_folder(one)) for one in allowed)


def _as_folder(address: str) -> str:
    return address if address.endswith(("/", ":")) else f"{address}/"


def _listed(addresses: tuple[str, ...]) -> str:
    return ", ".join(addresses) or "none"

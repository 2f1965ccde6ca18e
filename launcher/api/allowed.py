"""What the texts of a submitted configuration may name. Each field has a rule.

A rule takes a text and returns why it is refused, or None. It opens nothing outside the allowed folders.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path

from gemfleet.train.config.paths import folder_of
from gemfleet.train.config.sections.chat_template import is_template

from .folders import leads_out, real_path

UNSAFE_SUFFIXES = (".bin", ".ckpt", ".dll", ".npy", ".npz", ".p", ".pickle", ".pkl", ".pt", ".pth", ".py", ".sh", ".so")
HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?", re.ASCII)
PACKAGED = re.compile(r"demo(:[a-z]+)?")
SCHEME = re.compile(r"^\s*[A-Za-z][A-Za-z0-9+.-]*:(//|:)|^[^\s/]*@[^\s/]+:")
LOOKS_LIKE_PATH = re.compile(r"^[~./\\]|\\|(^|/)\.\.(/|$)")
SIGNING = "GEMFLEET_NOTIFY_"
DEEPSPEED_WORD = re.compile(r"[A-Za-z0-9_.+-]*")


@dataclass(frozen=True)
class Allowed:
    """What submitted configurations may name, beside `demo` and hub ids.

    roots: folders of the head below which they may name paths
    sources: addresses below which models and data may be fetched, as `git+https://host/group` or `s3://bucket/data`
    deliveries: addresses below which results and checkpoints may be put; `hub:OWNER` for Hugging Face
    reports: addresses below which trackers and webhooks may be; `wandb:ENTITY/PROJECT` for W&B
    """

    roots: tuple[Path, ...] = ()
    sources: tuple[str, ...] = ()
    deliveries: tuple[str, ...] = ()
    reports: tuple[str, ...] = ()


Rule = Callable[[str, Allowed], str | None]


def rule_of(where: str) -> Rule:
    """The rule of a field, by its dotted name. A field that is not in the table takes plain words only."""
    where = re.sub(r"\[\d+\]", "[]", where)
    return _RULES.get(where, _deepspeed if where.startswith("train.deepspeed.config.") else _plain)


def is_below_address(text: str, addresses: tuple[str, ...]) -> bool:
    """Whether a text is one of these addresses or lies below one. Texts with `..` or unusual characters do not."""
    address, _, branch = text.partition("#")
    if not re.fullmatch(r"[A-Za-z0-9+:/@._~=,-]+", address) or re.search(r"(^|[/:])\.\.?(/|$)", address):
        return False
    if branch and not re.fullmatch(r"[A-Za-z0-9._/-]+", branch):
        return False
    return any(address == one.rstrip("/") or address.startswith(_as_folder(one)) for one in addresses)


def _as_folder(address: str) -> str:
    return address if address.endswith(("/", ":")) else f"{address}/"


def listed(addresses: tuple[str, ...]) -> str:
    return ", ".join(addresses) or "none"


def _free(text: str, allowed: Allowed) -> str | None:
    """Allows any text: nothing opens it."""
    return None


def _plain(text: str, allowed: Allowed) -> str | None:
    """Allows a word or a name."""
    if text.lower().endswith(UNSAFE_SUFFIXES):
        return "names code or a pickle, which is never loaded"
    if LOOKS_LIKE_PATH.search(text):
        return "looks like a path, which this field does not take; give a name"
    return "looks like an address, which this field does not take; give a name" if SCHEME.match(text) else None


def _source(text: str, allowed: Allowed) -> str | None:
    """Allows a model or data that is packaged, on the hub, below an allowed folder, or at an allowed address."""
    if text.lower().endswith(UNSAFE_SUFFIXES):
        return "names code or a pickle, which is never loaded"
    if PACKAGED.fullmatch(text) or is_below_address(text, allowed.sources):
        return None
    if LOOKS_LIKE_PATH.search(text):
        return _path(text, allowed)
    if HUB_ID.fullmatch(text):
        return None
    return f"is no hub id, and no address that the API may fetch from ({listed(allowed.sources)})"


def _place(text: str, allowed: Allowed) -> str | None:
    """Allows a place for checkpoints: an allowed address, or a path below an allowed folder."""
    if is_below_address(text, allowed.deliveries):
        return None
    if text.startswith("/"):
        return _path(text, allowed)
    return f"is not below an address that the API may write to ({listed(allowed.deliveries)})"


def _report(text: str, allowed: Allowed) -> str | None:
    """Allows a tracker or a webhook at an allowed address. Never says the address, which may be a secret."""
    if is_below_address(text, allowed.reports):
        return None
    return "is not below an address that the API may report to; the head's owner allows them (api.allowed_reports)"


def _signing(text: str, allowed: Allowed) -> str | None:
    """Allows a variable that is meant for signing: a signature made with another would help to guess its value."""
    return (
        None if re.fullmatch(rf"{SIGNING}\w+", text, re.ASCII) else f"is no variable whose name begins with {SIGNING}"
    )


def _path(text: str, allowed: Allowed) -> str | None:
    """Allows a path below an allowed folder, if all links in it stay there."""
    if has_magic(text):  # nothing of the folder may lead out, whatever the pattern fits
        if ".." in text.split("/"):
            return "is a pattern with `..`, which is never followed; name the folder itself"
        text = folder_of(text)
    path = real_path(text)
    if path is None or not any(path.is_relative_to(root) for root in map(real_path, map(str, allowed.roots)) if root):
        roots = ", ".join(map(str, allowed.roots)) or "none"
        return f"is outside the folders that the API may use ({roots}); give an absolute path below one"
    return leads_out(path, allowed.roots)


def _template(text: str, allowed: Allowed) -> str | None:
    """Allows a chat template, which runs in a sandbox and opens nothing, or the path of one."""
    return None if text in ("gemma", "tokenizer") or is_template(text) else _path(text, allowed)


def _deepspeed(text: str, allowed: Allowed) -> str | None:
    """Allows a word, inside DeepSpeed's own configuration."""
    return None if DEEPSPEED_WORD.fullmatch(text) else "is no word of DeepSpeed's configuration; paths cannot be named"


_RULES: dict[str, Rule] = {
    "train.model": _source,
    "train.adapter": _source,
    "train.data.train": _source,
    "train.data.eval": _source,
    "train.data.train[]": _source,
    "train.data.eval[]": _source,
    "train.data.train[].path": _source,
    "train.data.eval[].path": _source,
    "train.data.chat_template": _template,
    "train.data.pictures.folders[]": _path,
    "train.deepspeed.config": _path,
    "cluster.storage": _place,
    "trackers[].uri": _report,
    "notify[].url": _report,
    "notify[].secret": _signing,
    "output.deliver.repository": _free,  # `refusals` looks at it together with its type
    "predict.answer_after": _free,
}

"""Keeps the API's two tokens in files that only their owner can read."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from gemfleet.cluster.token_file import load_token

from .settings import Tokens


def token_folder(home: Path) -> Path:
    return home / "api"


def load_tokens(home: Path) -> Tokens:
    """The tokens of `home`, made if missing. Raises ClusterError if another user could read one."""
    folder = token_folder(home)
    return Tokens(read=load_token(folder / "read.token"), admin=load_token(folder / "admin.token"))


def same_secret(given: str, expected: str) -> bool:
    """Whether two texts are equal. The time depends neither on the texts nor on their lengths."""
    return hmac.compare_digest(_digest(given), _digest(expected))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()

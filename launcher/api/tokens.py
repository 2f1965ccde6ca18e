"""The two tokens of an API that other machines can reach: made once, kept in files that only their owner can read."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from gemfleet.train.errors import UserError

from .settings import Tokens


def token_folder(home: Path) -> Path:
    return home / "api"


def load_tokens(home: Path) -> Tokens:
    """The tokens of `home`, made when missing. UserError when another user could read one."""
    folder = token_folder(home)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Tokens(read=_token(folder / "read.token"), admin=_token(folder / "admin.token"))


def same_secret(given: str, expected: str) -> bool:
    """Compare in a time that depends on neither text, nor on their lengths."""
    return hmac.compare_digest(_digest(given), _digest(expected))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _token(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read(path)
    with os.fdopen(descriptor, "w") as file:
        token = secrets.token_urlsafe(32)
        file.write(token + "\n")
    return token


def _read(path: Path) -> str:
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise UserError(f"{path} can be read by other users (mode {mode:o}); run `chmod 600 {path}`, or delete it")
    token = path.read_text().strip()
    if len(token) < 16:
        raise UserError(f"{path} holds no token of at least 16 characters; delete it, and a new one is made")
    return token

"""A token in a file that only its owner can read, made once: the cluster's own, and those of the API."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from .errors import ClusterError

LEAST_CHARACTERS = 16


def load_token(path: Path) -> str:
    """The token of `path`, made when missing. ClusterError when others can read it, or it is no token."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read(path)
    except OSError as error:
        raise ClusterError(
            f"the token file {path} cannot be made: {error.strerror}; give another place for it"
        ) from None
    with os.fdopen(descriptor, "w") as file:
        token = secrets.token_urlsafe(32)
        file.write(token + "\n")
    return token


def _read(path: Path) -> str:
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise ClusterError(f"{path} can be read by other users (mode {mode:o}); run `chmod 600 {path}`, or delete it")
    token = path.read_text().strip()
    if len(token) < LEAST_CHARACTERS or not token.isascii() or not token.isprintable() or " " in token:
        raise ClusterError(f"{path} holds no token: give {LEAST_CHARACTERS} or more letters and digits, or delete it")
    return token

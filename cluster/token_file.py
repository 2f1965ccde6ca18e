"""A token in a file that only its owner can read: the cluster's own token, and those of the API."""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path

from .errors import ClusterError
from .private import private_folder

LEAST_CHARACTERS = 16


def load_token(path: Path) -> str:
    """The token in `path`; makes it when missing. ClusterError when others can read the file, or it holds no token."""
    if not path.exists():
        try:
            private_folder(path.parent)
            _make(path)
        except FileExistsError:
            pass  # another process was first; its token counts
        except OSError as error:
            raise ClusterError(
                f"the token file {path} cannot be made: {error.strerror}; give another place for it"
            ) from None
    return _read(path)


def _make(path: Path) -> None:
    """Writes a new token under another name, then links it to `path`: nobody reads half of it. FileExistsError."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(secrets.token_urlsafe(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(name, path)
    finally:
        os.unlink(name)


def _read(path: Path) -> str:
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise ClusterError(f"{path} can be read by other users (mode {mode:o}); run `chmod 600 {path}`, or delete it")
    token = path.read_text().strip()
    if len(token) < LEAST_CHARACTERS or not token.isascii() or not token.isprintable() or " " in token:
        raise ClusterError(f"{path} holds no token: give {LEAST_CHARACTERS} or more letters and digits, or delete it")
    return token

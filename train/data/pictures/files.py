"""Reads the files of pictures, and only those that the configuration allows: from the data's folder, or of other ones.

What a row names is another's text. A path is followed to its real place before it is opened, links and `..` included.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

from ...config.sections.pictures import PicturesConfig
from ..shapes.conversation import Picture

MOST_BYTES = 256 << 20
TIMEOUT_SECONDS = 30.0
NAMED = 80  # characters of what a row calls a picture
SOURCES = ("bytes", "base64", "path", "url", "image_url", "image")  # keys of a part, in the order of trust
OUTSIDE = "a picture outside the data's folder (train.data.pictures.folders allows others)"
ADDRESS = "a picture at an address (train.data.pictures.addresses allows them)"
MISSING = "a picture that is not there"
UNREADABLE = "a picture that is not given as path, url, bytes or base64"
LARGE = f"a picture of more than {MOST_BYTES >> 20} MiB"


class _FaultError(Exception):
    """Why a picture is not read: a reason and a detail."""


class PictureFiles:
    """The files of one data set's pictures.

    `seen`: by the path, relative to the data's folder where it is below, the digest of each file; None: it is missing
    `fetched`: whether a picture came from an address, whose content may change
    """

    def __init__(self, rules: PicturesConfig, home: Path | None) -> None:
        """home: the data's folder; None: it has none here, as a data set of the hub"""
        self._rules, self.home = rules, home.resolve() if home else None
        self._roots = [Path(folder).expanduser().resolve() for folder in rules.folders]
        self._roots += [self.home] if self.home else []
        self.seen: dict[str, str | None] = {}
        self.fetched = False

    def read(self, value: Any, folder: Path | None = None) -> Picture:
        """The picture that a row's value means. Never raises.

        value: a path, an address, `data:…`, bytes, or a mapping with one of `SOURCES`
        folder: that of the row's file, where it differs from the data's
        """
        name, source = _named(value)
        try:
            return Picture(name, self._content(source, folder or self.home))
        except _FaultError as fault:
            return Picture(name, fault=(fault.args[0], f"{name}{fault.args[1]}"))

    def _content(self, source: Any, beside: Path | None) -> bytes:
        if isinstance(source, bytes):
            return _limited(source)
        if not isinstance(source, str) or not source or "\0" in source:
            raise _FaultError(UNREADABLE, "")
        if source.startswith("data:"):
            return _decoded(source.partition(",")[2])
        scheme = urlsplit(source).scheme if "://" in source or source.startswith("file:") else ""
        if not scheme:
            return self._file(source, beside)
        if not self._rules.addresses:
            raise _FaultError(ADDRESS, "")
        if scheme == "file":
            return self._file(unquote(urlsplit(source).path), beside)
        if scheme not in ("http", "https"):
            raise _FaultError(ADDRESS, f": not {scheme}")
        self.fetched = True
        return _fetched(source)

    def _file(self, named: str, beside: Path | None) -> bytes:
        """The content of an allowed file. Nothing outside the allowed folders is opened."""
        try:
            real = ((beside or Path()) / named).resolve()
        except (OSError, RuntimeError) as error:  # a name that is too long, or links in a circle
            raise _FaultError(MISSING, "") from error
        if not any(real.is_relative_to(root) for root in self._roots):
            raise _FaultError(OUTSIDE, "")
        try:
            content = _regular(real)
        except OSError as error:
            self._note(real, None)
            raise _FaultError(MISSING, f": {error.strerror or error}") from error
        self._note(real, content)
        return content

    def _note(self, real: Path, content: bytes | None) -> None:
        home = self.home
        name = str(real.relative_to(home)) if home and real.is_relative_to(home) else str(real)
        self.seen[name] = None if content is None else digest_of(content)


def digest_of(content: bytes) -> str:
    """A digest of a file's content."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def unchanged(seen: Mapping[str, str | None], home: Path | None) -> bool:
    """Whether files are as they were. seen: see `PictureFiles`; home: the data's folder"""
    for name, digest in seen.items():
        path = (home or Path()).resolve() / name
        try:
            found = digest_of(_regular(path)) if path.resolve() == path else None
        except (OSError, RuntimeError, _FaultError):
            found = None
        if found != digest:
            return False
    return True


def _regular(path: Path) -> bytes:
    """The content of a regular file. It follows no link that takes the file's place, and waits for no pipe."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("no file")
        return _limited(file.read(MOST_BYTES + 1))


def _fetched(address: str) -> bytes:
    try:
        with urlopen(address, timeout=TIMEOUT_SECONDS) as answer:  # it never follows to a file
            content: bytes = answer.read(MOST_BYTES + 1)
    except (URLError, OSError, ValueError) as error:
        raise _FaultError(MISSING, f": {getattr(error, 'reason', error)}"[:200]) from error
    return _limited(content)


def _limited(content: bytes) -> bytes:
    if len(content) > MOST_BYTES:
        raise _FaultError(LARGE, "")
    return content


def _decoded(text: str) -> bytes:
    try:
        return _limited(base64.b64decode(text, validate=False))
    except (binascii.Error, ValueError) as error:
        raise _FaultError(UNREADABLE, ": no base64") from error


def _named(value: Any) -> tuple[str, Any]:
    """What a value is called in a sentence, and its text or bytes."""
    source, key = value, ""
    while isinstance(source, Mapping):
        key = next((name for name in SOURCES if source.get(name) is not None), "")
        source = source.get(key)
    if isinstance(source, bytes | bytearray) or (isinstance(source, str) and source.startswith("data:")):
        inner = value.get("path") if isinstance(value, Mapping) else None
        return (f"{inner!r}"[:NAMED] if isinstance(inner, str) else "its bytes"), (
            bytes(source) if isinstance(source, bytearray) else source
        )
    if isinstance(source, str) and key in ("base64", "bytes"):
        return "its base64", f"data:,{source}"
    if source is None:
        return "nothing", source
    return (repr(source[:NAMED]) if isinstance(source, str) else f"a value of type {type(source).__name__}"), source

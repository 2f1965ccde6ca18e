"""The manifest lists the files of a checkpoint. A checkpoint exists when, and only when, its manifest does."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..errors import StoreError

MANIFEST_FILE = "manifest.json"
SCHEMA_VERSION = 1
SHA256 = re.compile("[0-9a-f]{64}")
READ_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True)
class FileEntry:
    """One file: its name relative to the checkpoint, its size in bytes and its sha256 in hexadecimal."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A committed checkpoint. `generation` counts the attempts of the run; `created_at` is seconds since the epoch.

    metrics: what was measured at this very step, such as `eval_loss`; empty when nothing was
    """

    step: int
    generation: int
    created_at: float
    files: tuple[FileEntry, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        """The size of all files together."""
        return sum(entry.size for entry in self.files)

    def to_json(self) -> str:
        """The content of the manifest's file, see `parse`."""
        return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def read(cls, folder: Path, step: int | None = None) -> Manifest:
        """The manifest in `folder`. StoreError when it is absent, damaged, of an unknown schema or of another step."""
        try:
            if not (folder / MANIFEST_FILE).is_file():  # opening a pipe of that name would wait for ever
                raise StoreError(f"{folder} has no manifest")
            text = (folder / MANIFEST_FILE).read_bytes()
        except OSError as error:
            raise StoreError(f"{folder} has no readable manifest ({error})") from error
        return cls.parse(text, str(folder), step)

    @classmethod
    def parse(cls, text: bytes, where: str, step: int | None = None) -> Manifest:
        """The manifest of this text, see `read`. `where`: its folder, for the message."""
        try:
            content = json.loads(text)
            if content.pop("schema_version") != SCHEMA_VERSION:
                raise StoreError(f"{where}/{MANIFEST_FILE} has a schema unknown to this gemfleet; upgrade gemfleet")
            files = tuple(FileEntry(**entry) for entry in content.pop("files"))
            manifest = cls(files=files, **content)
            manifest.check(step)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise StoreError(f"{where} has no readable manifest ({error})") from error
        return manifest

    def check(self, step: int | None) -> None:
        """ValueError for what no store writes: wrong types, no files, a file twice, or another step than `step`."""
        numbers = {
            "step": self.step,
            "generation": self.generation,
            **{f"size of {e.path}": e.size for e in self.files},
        }
        for name, value in numbers.items():
            if type(value) is not int or value < 0:
                raise ValueError(f"its {name} is {value!r}, not a number that counts")
        if step is not None and self.step != step:
            raise ValueError(f"it is of step {self.step}")
        if not isinstance(self.metrics, dict) or not all(map(_is_number, (self.created_at, *self.metrics.values()))):
            raise ValueError("its time or its metrics are no numbers")
        if not self.files:
            raise ValueError("it names no files")
        for entry in self.files:
            if not isinstance(entry.sha256, str) or not SHA256.fullmatch(entry.sha256):
                raise ValueError(f"the sha256 of {entry.path} is {entry.sha256!r}")
            checked_name(entry.path)
        if len({entry.path for entry in self.files}) < len(self.files):
            raise ValueError("it names a file twice")

    def verify(self, folder: Path) -> None:
        """Compares size and hash of every file in `folder`. StoreError names the first that is missing or different."""
        for entry in self.files:
            path = folder / entry.path
            try:
                _compare(path, entry)
            except OSError as error:
                raise StoreError(f"{path} cannot be read ({error.strerror or error})") from error


def least(manifests: Sequence[Manifest], metric: str) -> Manifest | None:
    """The checkpoint with the lowest finite value of a metric, the first of equals; None where none has one."""
    measured = [m for m in manifests if math.isfinite(m.metrics.get(metric, math.nan))]
    return min(measured, key=lambda m: m.metrics[metric], default=None)


def _compare(path: Path, entry: FileEntry) -> None:
    if path.is_symlink() or not path.is_file():
        raise StoreError(f"{path} is missing")
    if path.stat().st_size != entry.size:
        raise StoreError(f"{path} has {path.stat().st_size} bytes, its manifest says {entry.size}")
    if sha256_of(path) != entry.sha256:
        raise StoreError(f"{path} is damaged: its sha256 is not the manifest's")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def checked_name(name: str) -> str:
    """Returns `name` when it is a plain relative file name, possibly with folders.

    StoreError when it leaves its folder, or is a name that the store uses itself: `manifest.json` and hidden names.
    """
    if not isinstance(name, str):
        raise StoreError(f"the file name {name!r} is no text")
    parts = Path(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\0" in name or name.endswith("/"):
        raise StoreError(f"the file name {name!r} leaves the checkpoint's folder; only plain relative names are stored")
    if name == MANIFEST_FILE or any(part.startswith(".") for part in parts):
        raise StoreError(f"the file name {name!r} is one the store keeps for itself; rename the file")
    return name


def sha256_of(path: Path) -> str:
    """The sha256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()

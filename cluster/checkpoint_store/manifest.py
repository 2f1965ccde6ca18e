"""The manifest: what a checkpoint consists of. A checkpoint exists when, and only when, its manifest does."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..errors import StoreError

MANIFEST_FILE = "manifest.json"
TEMPORARY = ".tmp"
REMOVED = ".removed-"  # begins the name of a folder on its way out
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

    metrics: what was measured at this very step, such as `eval_loss`; empty where nothing was
    """

    step: int
    generation: int
    created_at: float
    files: tuple[FileEntry, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        return sum(entry.size for entry in self.files)

    def to_json(self) -> str:
        return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def read(cls, folder: Path, step: int | None = None) -> Manifest:
        """The manifest in `folder`. StoreError when it is absent, damaged, or of an unknown schema or another step."""
        try:
            if not (folder / MANIFEST_FILE).is_file():  # to open a pipe of that name would wait for ever
                raise StoreError(f"{folder} has no manifest")
            text = (folder / MANIFEST_FILE).read_bytes()
        except OSError as error:
            raise StoreError(f"{folder} has no readable manifest ({error})") from error
        return cls.parse(text, str(folder), step)

    @classmethod
    def parse(cls, text: bytes, where: str, step: int | None = None) -> Manifest:
        """As `read`; `where` it lies is for the message."""
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
        """ValueError for what no store writes: other types, no files, a file twice, or another step than `step`."""
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
        """Every file is there with its size and hash; StoreError naming the first that is not, or cannot be read."""
        for entry in self.files:
            path = folder / entry.path
            try:
                _compare(path, entry)
            except OSError as error:
                raise StoreError(f"{path} cannot be read ({error.strerror or error})") from error


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
    """A plain relative file name, possibly with folders.

    StoreError for one that would leave its folder, or that the store uses itself: `manifest.json` and hidden names.
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
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def write_durably(path: Path, content: bytes) -> None:
    """Replace `path` by `content`: it holds the old or the new content whole, also when the machine stops midway."""
    temporary = path.with_name(f".{path.name}.{threading.get_ident()}{TEMPORARY}")  # two threads never share one
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make names created or renamed in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_folder(folder: Path) -> bool:
    """Rename it, then delete it: whoever looks sees the whole folder or none, and whoever would still take it over,
    as a store of an older attempt may, comes too late or was first. Returns whether it was there.

    OSError when it cannot be renamed; what cannot be deleted stays under the new name for the next sweep.
    """
    doomed = folder.with_name(f"{REMOVED}{folder.name}-{secrets.token_hex(4)}")
    try:
        folder.rename(doomed)
    except FileNotFoundError:
        return False
    shutil.rmtree(doomed, ignore_errors=True)
    return True

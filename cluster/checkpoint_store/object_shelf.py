"""Committed checkpoints in an object store. The write of the manifest commits them.

An object store has no rename, and a key appears whole or not at all. So the files of a checkpoint go up first, to their
final keys, where no reader looks at them; then the one write of `manifest.json` makes them a checkpoint. Only the head
writes: it refuses ranks of an older attempt before anything goes up, and ranks need no credentials.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.fs
from pyarrow.fs import FileSelector, FileType

from ..errors import StoreError
from .manifest import MANIFEST_FILE, FileEntry, Manifest
from .object_errors import other_size, said
from .shelf import COMMITTED, Fingerprint, Shelf

CHUNK_BYTES = 8 << 20


class ObjectShelf(Shelf):
    """Checkpoints as `<base>/checkpoint-<step>/<file>` of a pyarrow filesystem.

    url:   `base` with its scheme, for people
    cache: a folder of this machine for a copy of the one checkpoint that is read
    """

    def __init__(self, filesystem: pyarrow.fs.FileSystem, base: str, url: str, cache: Path) -> None:
        super().__init__()
        self._filesystem, self._base, self._url, self._cache = filesystem, base, url, cache
        self._lock = threading.Lock()

    def steps(self) -> list[int]:
        """Google's store has no folders, so keys are listed."""
        with self._errors_named("listed"):
            found = self._filesystem.get_file_info(FileSelector(self._base, recursive=True, allow_not_found=True))
        names = {info.path.removeprefix(f"{self._base}/").partition("/")[0] for info in found}
        return sorted(int(match["step"]) for match in map(COMMITTED.fullmatch, names) if match)

    def manifest(self, step: int) -> Manifest:
        location = self.location(step)
        with (
            self._errors_named(f"read: {location} has no readable manifest"),
            self._reading(step, MANIFEST_FILE) as file,
        ):
            text = bytes(file.read())
        return Manifest.parse(text, location, step)

    def verify(self, manifest: Manifest) -> None:
        for entry in manifest.files:
            self._copy(manifest.step, entry, None)

    def fingerprint(self, manifest: Manifest) -> Fingerprint:
        with self._errors_named("read"):
            found = self._filesystem.get_file_info([self._key(manifest.step, e.path) for e in manifest.files])
        return tuple((info.size or -1, info.mtime_ns or 0) for info in found)

    def publish(self, manifest: Manifest, folder: Path) -> None:
        """What lies at these keys already is damaged, or of an attempt that wrote no manifest; it goes first."""
        with self._errors_named("written"):
            self._delete(manifest.step)
            for entry in manifest.files:
                with (folder / entry.path).open("rb") as file, self._writing(manifest.step, entry.path) as stream:
                    shutil.copyfileobj(file, stream, CHUNK_BYTES)
            self._compare_sizes(manifest)
            with self._writing(manifest.step, MANIFEST_FILE) as stream:
                stream.write(manifest.to_json().encode())
            try:
                self._compare_sizes(manifest)  # a newer attempt may have swept what had no manifest yet
            except StoreError:
                self._filesystem.delete_file(self._key(manifest.step, MANIFEST_FILE))
                raise

    def remove(self, step: int) -> None:
        with self._errors_named("removed"):
            self._delete(step)

    def sweep(self) -> list[str]:
        removed = []
        for step in self.steps():
            with self._errors_named("swept"):
                if self._filesystem.get_file_info(self._key(step, MANIFEST_FILE)).type != FileType.File:
                    self._delete(step)
                    removed.append(f"checkpoint-{step}")
        return removed

    def probe(self) -> None:
        key, content = f"{self._base}/.probe", b"probe"
        with self._errors_named("written"):
            with self._filesystem.open_output_stream(key) as stream:
                stream.write(content)
            there = self._filesystem.get_file_info(key).size or 0
            self._filesystem.delete_file(key)
        if there != len(content):
            raise StoreError(other_size(f"{self._url}/.probe", there, len(content)))

    def at_hand(self, step: int) -> Path:
        """Fetches the checkpoint once and checks it. The next step's copy takes its place."""
        folder = self._cache / f"checkpoint-{step}"
        with self._lock:
            if not (folder / MANIFEST_FILE).is_file():
                shutil.rmtree(self._cache, ignore_errors=True)
                manifest = self.manifest(step)
                for entry in manifest.files:
                    self._copy(step, entry, folder / entry.path)
                (folder / MANIFEST_FILE).write_text(manifest.to_json())
        return folder

    def location(self, step: int) -> str:
        return f"{self._url}/checkpoint-{step}"

    def gone(self, step: int, found: Manifest | str) -> bool:
        """A checkpoint is gone once its manifest is: a removal takes it first."""
        if not isinstance(found, Manifest):
            return super().gone(step, found)
        with self._errors_named("listed"):
            return bool(self._filesystem.get_file_info(self._key(step, MANIFEST_FILE)).type == FileType.NotFound)

    def _compare_sizes(self, manifest: Manifest) -> None:
        for entry, (size, _) in zip(manifest.files, self.fingerprint(manifest), strict=True):
            if size != entry.size and entry.size:
                raise StoreError(other_size(f"{self.location(manifest.step)}/{entry.path}", size, entry.size))

    def _copy(self, step: int, entry: FileEntry, target: Path | None) -> None:
        """Reads a file, compares it with its entry, and writes it to `target` if given. StoreError when it differs."""
        digest, size = hashlib.sha256(), 0
        location = f"{self.location(step)}/{entry.path}"
        named = self._errors_named(f"read: {location} is missing or out of reach")
        with named, _written(target) as write, self._reading(step, entry.path) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
                write(chunk)
        if size != entry.size:
            raise StoreError(f"{location} has {size} bytes, its manifest says {entry.size}")
        if digest.hexdigest() != entry.sha256:
            raise StoreError(f"{location} is damaged: its sha256 is not the manifest's")

    def _delete(self, step: int) -> None:
        """Deletes the manifest first, then every other key below."""
        base = f"{self._base}/checkpoint-{step}"
        found = self._filesystem.get_file_info(FileSelector(base, recursive=True, allow_not_found=True))
        keys = [info.path for info in found if info.type == FileType.File]
        for key in sorted(keys, key=lambda key: key != f"{base}/{MANIFEST_FILE}"):
            self._filesystem.delete_file(key)
        if self._filesystem.get_file_info(base).type == FileType.Directory:
            self._filesystem.delete_dir(base)  # empty keys that stand for folders in S3

    def _reading(self, step: int, name: str) -> Any:
        return self._filesystem.open_input_stream(self._key(step, name))

    def _writing(self, step: int, name: str) -> Any:
        return self._filesystem.open_output_stream(self._key(step, name))

    def _key(self, step: int, name: str) -> str:
        return f"{self._base}/checkpoint-{step}/{name}"

    @contextmanager
    def _errors_named(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"{self._url} cannot be {action} ({said(error)})") from error


@contextmanager
def _written(target: Path | None) -> Iterator[Callable[[bytes], object]]:
    """A function that takes each chunk: it writes to `target`, or does nothing without a target."""
    if target is None:
        yield len
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        yield file.write

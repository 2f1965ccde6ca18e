"""Copies a folder or a file of an object store to the head. Copies once, and checks each file's size."""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gemfleet.cluster.checkpoint_store.object_errors import said
from gemfleet.train.errors import UserError

from .git_command import Progress
from .pickles import PICKLES

if TYPE_CHECKING:  # slow to import
    from pyarrow.fs import FileInfo, FileSystem

ADDRESS = re.compile(r"(s3|gs)://([a-z0-9][a-z0-9._-]{1,61}[a-z0-9])((?:/[^/\x00-\x1f\x7f\\?#]+)*)/?")
SCHEMES = ("s3://", "gs://")
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and, for a store of your own, AWS_ENDPOINT_URL",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
}
CHUNK_BYTES = 8 * 2**20
MOST_FILES = 100_000
FETCH_SECONDS = 4 * 3600.0


@dataclass(frozen=True)
class ObjectAddress:
    """A checked address. path: the bucket and the key of a file or a folder, without slashes at its ends"""

    scheme: str
    path: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"

    def below(self, name: str) -> ObjectAddress:
        return ObjectAddress(self.scheme, f"{self.path}/{name}")


def is_object_source(source: str) -> bool:
    return source.startswith(SCHEMES)


def parse_object_address(address: str) -> ObjectAddress:
    """The checked address of `s3://BUCKET/FOLDER` or `gs://…`. Raises UserError for any other form."""
    if re.match(r"[a-z0-9]+://[^/]*@", address):
        raise UserError("the address of an object store holds a credential; take it out and set it in the environment")
    match = ADDRESS.fullmatch(address)
    if match is None or any(part in (".", "..") for part in match[3].split("/")):
        raise UserError(
            f"{address!r} is not an address of an object store; give s3://bucket/folder or gs://bucket/folder"
        )
    return ObjectAddress(match[1], match[2] + match[3])


def store_of(address: ObjectAddress) -> FileSystem:
    """The store that holds the address. Imports pyarrow, which is slow."""
    from gemfleet.cluster.checkpoint_store.location import object_filesystem

    return object_filesystem(address.scheme, address.path.partition("/")[0])


def files_below(store: FileSystem, folder: str) -> list[FileInfo]:
    """Every object below a folder, of one listing: it comes whole, or OSError says why not."""
    from pyarrow.fs import FileSelector, FileType

    found = store.get_file_info(FileSelector(folder, recursive=True, allow_not_found=True))
    return [info for info in found if info.type == FileType.File]


def fetch_objects(address: ObjectAddress, cache: Path, progress: Progress | None = None) -> Path:
    """The copy of a folder or a file below `cache`. Copies again if anything in the store has changed.

    Leaves out pickles. Raises UserError when the store cannot be read.
    """
    try:
        store = store_of(address)
        listing = list_objects(store, address)
        facts = [[name, info.size, info.mtime_ns] for name, info in sorted(listing.items())]
        listed = json.dumps([str(address), facts])
        key = hashlib.sha256(str(address).encode()).hexdigest()[:16]
        folder = cache / key / hashlib.sha256(listed.encode()).hexdigest()
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():
                _copy(store, address, listing, folder, progress)
    except OSError as error:
        raise UserError(
            f"{address} cannot be read ({said(error)}); check the address and the environment: "
            f"{CREDENTIALS[address.scheme]}"
        ) from None
    single = [info.path for info in listing.values()] == [address.path]
    return folder / Path(address.path).name if single else folder


def list_objects(store: FileSystem, address: ObjectAddress) -> dict[str, FileInfo]:
    """The facts (size, time) of each object to copy, by name below the address. Raises UserError if there is none.

    The listing is asked first: its refusal says why, which S3's of one object and Google's of a folder do not.
    """
    from pyarrow.fs import FileType

    below, one = files_below(store, address.path), store.get_file_info(address.path)
    if one.type == FileType.File:
        return {Path(address.path).name: one}
    if one.type == FileType.NotFound and not below:
        raise UserError(f"there is nothing at {address}; name a file or a folder that is there")
    found = {
        checked_name(name, address): info
        for info in below
        if not (name := info.path.removeprefix(f"{address.path}/")).lower().endswith(PICKLES)
    }
    if len(found) > MOST_FILES:
        raise UserError(f"{address} holds more than {MOST_FILES:,} objects; name the folder that is meant")
    if not found:
        raise UserError(f"{address} holds no file that gemfleet reads; name a file or a folder that does")
    return found


def checked_name(name: str, address: ObjectAddress) -> str:
    """The name of an object. Raises UserError if it is no plain relative path, as a key may be any text."""
    parts = name.split("/")
    if "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise UserError(f"{address} holds an object named {name!r}, which is no path below it; remove it")
    return name


def _copy(
    store: FileSystem,
    address: ObjectAddress,
    listing: Mapping[str, FileInfo],
    folder: Path,
    progress: Progress | None,
) -> None:
    total, done = sum(info.size for info in listing.values()), 0
    free = shutil.disk_usage(folder.parent).free
    if total > free:
        raise UserError(f"{address} has {total / 2**20:,.0f} MiB, and {folder.parent} has room for {free / 2**20:,.0f}")
    deadline = time.monotonic() + FETCH_SECONDS
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as work:
        files = Path(work) / "files"
        for name, info in listing.items():
            target = files / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with store.open_input_stream(info.path, compression=None) as source, target.open("wb") as file:
                while chunk := source.read(CHUNK_BYTES):
                    file.write(chunk)
                    done += len(chunk)
                    if progress is not None:
                        progress(done >> 20, max(1, total >> 20), "MiB")
                    if time.monotonic() > deadline:
                        raise UserError(f"{address} took longer than {FETCH_SECONDS:g} s; copy it to the head node")
            if target.stat().st_size != info.size:
                raise UserError(f"{info.path} changed while it was read; start again")
        files.rename(folder)

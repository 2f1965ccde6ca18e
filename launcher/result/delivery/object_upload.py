"""Uploads a folder to an object store. Where there is a manifest, there is everything that it lists.

A store cannot change several objects at once. So an older delivery's manifest is removed first. Then the files are
uploaded, and the older delivery's other files are removed. The new manifest is written last.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemfleet.cluster.checkpoint_store.object_errors import other_size, said
from gemfleet.launcher.sources.git_command import Progress
from gemfleet.launcher.sources.objects import CHUNK_BYTES, ObjectAddress, files_below, store_of

from .retry import try_again

if TYPE_CHECKING:  # slow to import
    from pyarrow.fs import FileSystem

MANIFEST = "gemfleet-manifest.json"


def upload_folder_to_store(
    folder: Path,
    address: ObjectAddress,
    message: str,
    progress: Progress | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Upload every file of `folder` below the address. Returns how many. Raises DeliveryError after three tries."""
    what = f"the upload to {address}"
    return try_again(lambda: _upload(folder, address, message, progress), (OSError,), what, sleep, said)


def _upload(folder: Path, address: ObjectAddress, message: str, progress: Progress | None) -> int:
    store = store_of(address)
    manifest = address.below(MANIFEST).path
    there = {info.path for info in files_below(store, address.path)}
    if manifest in there:
        store.delete_file(manifest)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    total, done = sum(path.stat().st_size for path in paths), 0
    files: list[dict[str, Any]] = []
    for path in paths:
        name = str(path.relative_to(folder))
        size, digest = _send(store, path, address.below(name).path)
        files.append({"path": name, "bytes": size, "sha256": digest})
        done += size
        if progress is not None:
            progress(done >> 20, max(1, total >> 20), "MiB")
    wanted = {address.below(entry["path"]).path for entry in files}
    for old in there - wanted - {manifest}:
        store.delete_file(old)
    content = json.dumps({"message": message, "files": files}, indent=1, ensure_ascii=False).encode()
    with store.open_output_stream(manifest, compression=None) as target:
        target.write(content)
    return len(files)


def _send(store: FileSystem, path: Path, key: str) -> tuple[int, str]:
    """Upload one file. Returns its size and sha256. Raises OSError if the store then holds another size."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as source, store.open_output_stream(key, compression=None) as target:
        while chunk := source.read(CHUNK_BYTES):
            digest.update(chunk)
            target.write(chunk)
            size += len(chunk)
    if (there := store.get_file_info(key).size or 0) != size:
        raise OSError(other_size(key, there, size))
    return size, digest.hexdigest()

"""Where the checkpoints of a run rest: on the head's disk, in a mounted folder, or in an object store.

Importing this file imports nothing heavy: a configuration is checked by it before anything starts.
"""

from __future__ import annotations

import os
import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ClusterError, RunConflict, StoreError
from .folder_shelf import FolderShelf
from .shelf import Shelf

if TYPE_CHECKING:  # these import numpy and pyarrow
    import pyarrow.fs

    from .commit import CheckpointDisk

OBJECT_STORE = re.compile(r"(?P<scheme>s3|gs)://(?P<bucket>[a-z0-9][a-z0-9._-]+)(?P<prefix>(/[A-Za-z0-9_=.-]+)*)/?")
CONNECT_SECONDS = 10
REQUEST_SECONDS = 60
ATTEMPTS = 5


def is_storage(text: str) -> bool:
    """Whether `text` names a place for checkpoints: an absolute path, or a bucket with a plain prefix."""
    if "\0" in text or ".." in Path(text).parts:
        return False
    return text.startswith("/") or OBJECT_STORE.fullmatch(text) is not None


def checkpoints_folder(storage: str | None, run_folder: Path) -> Path | None:
    """The folder of this machine that holds the run's checkpoints; None when an object store holds them."""
    if storage is None:
        return run_folder / "checkpoints"
    return Path(storage) / run_folder.name / "checkpoints" if storage.startswith("/") else None


def open_shelf(storage: str | None, run_folder: Path, cache: Path) -> Shelf:
    """The run's committed checkpoints. It asks nothing of an object store yet. ClusterError for a malformed `storage`.

    storage: see `is_storage`; None for the run's own folder on the head
    cache:   the folder that takes a copy when a checkpoint of an object store is read
    """
    folder = checkpoints_folder(storage, run_folder)
    if folder is not None:
        return FolderShelf(folder)
    match = OBJECT_STORE.fullmatch(storage or "")
    if match is None:
        raise ClusterError(f"{storage!r} is no place for checkpoints; give s3://BUCKET/PREFIX, gs://… or a path")
    from .object_shelf import ObjectShelf

    base = f"{match['bucket']}{match['prefix']}/{run_folder.name}/checkpoints"
    filesystem = object_filesystem(match["scheme"], match["bucket"])
    return ObjectShelf(filesystem, base, f"{match['scheme']}://{base}", cache)


def open_disk(storage: str | None, run_folder: Path) -> CheckpointDisk:
    """What the store writes to. Uploads arrive on the head's disk, or beside the folder that takes them by a rename."""
    from .commit import CheckpointDisk

    folder = checkpoints_folder(storage, run_folder) or run_folder / "checkpoints"
    return CheckpointDisk(folder, open_shelf(storage, run_folder, folder / ".at-hand"))


def check_storage(storage: str | None, run_folder: Path, *, is_new: bool = False) -> None:
    """Call it before anything begins. ClusterError when no checkpoint can be written there.

    `is_new`: the run has written none yet; checkpoints that are there are another run's, and RunConflict.
    """
    try:
        if storage is not None and storage.startswith("/") and not Path(storage).is_dir():
            raise StoreError("that folder does not exist; mount it, or make it")
        shelf = open_disk(storage, run_folder).shelf
        shelf.probe()
        found = shelf.steps() if is_new else []
    except (OSError, StoreError) as error:
        raise ClusterError(
            f"cluster.storage is {storage}, where no checkpoint can be written: {error}\n"
            "  credentials and region are read from the environment of this process and of the head's `ray start`"
        ) from error
    if found:
        raise RunConflict(
            f"{shelf.location(found[-1])} is of an older run of the id {run_folder.name}; choose another id, "
            "or remove what that run left"
        )


def object_filesystem(scheme: str, bucket: str) -> pyarrow.fs.FileSystem:
    """The filesystem of a bucket. It takes credentials, region and endpoint from the environment, as vendors' tools do.

    OSError when the region of an S3 bucket is neither set nor can be found.
    """
    import pyarrow.fs

    if scheme == "gs":
        limit = timedelta(seconds=ATTEMPTS * REQUEST_SECONDS)
        emulated = "CLOUD_STORAGE_EMULATOR_ENDPOINT" in os.environ  # an emulator knows no accounts
        return pyarrow.fs.GcsFileSystem(anonymous=emulated, retry_time_limit=limit)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    options: dict[str, Any] = {"endpoint_override": endpoint} if endpoint else {}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None and endpoint is None:
        region = pyarrow.fs.resolve_s3_region(bucket)
    return pyarrow.fs.S3FileSystem(
        region=region,
        connect_timeout=CONNECT_SECONDS,
        request_timeout=REQUEST_SECONDS,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        background_writes=False,  # parts would pile up in memory when the network is slower than the disk
        **options,
    )

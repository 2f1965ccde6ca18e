"""Where the checkpoints of a run rest: on the head's disk, in a mounted folder, or in an object store."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.fs

from ..errors import ClusterError, RunConflict, StoreError
from .commit import CheckpointDisk
from .folder_shelf import FolderShelf
from .object_shelf import ObjectShelf
from .places import OBJECT_STORE, checkpoints_folder
from .shelf import Shelf

CONNECT_SECONDS = 10
REQUEST_SECONDS = 60
ATTEMPTS = 5


def open_shelf(storage: str | None, run_folder: Path, cache: Path) -> Shelf:
    """The run's committed checkpoints. Nothing is asked of an object store yet.

    storage: see `places.is_storage`; None for the run's own folder on the head
    cache: where a checkpoint of an object store is fetched to when it is read
    """
    folder = checkpoints_folder(storage, run_folder)
    if folder is not None:
        return FolderShelf(folder)
    match = OBJECT_STORE.fullmatch(storage or "")
    if match is None:
        raise ClusterError(f"{storage!r} is no place for checkpoints; give s3://BUCKET/PREFIX, gs://… or a path")
    base = f"{match['bucket']}{match['prefix']}/{run_folder.name}/checkpoints"
    filesystem = object_filesystem(match["scheme"], match["bucket"])
    return ObjectShelf(filesystem, base, f"{match['scheme']}://{base}", cache)


def open_disk(storage: str | None, run_folder: Path) -> CheckpointDisk:
    """What the store writes to. Uploads on their way lie on the head, or beside a folder that takes them by rename."""
    folder = checkpoints_folder(storage, run_folder) or run_folder / "checkpoints"
    return CheckpointDisk(folder, open_shelf(storage, run_folder, folder / ".at-hand"))


def check_storage(storage: str | None, run_folder: Path, *, is_new: bool = False) -> None:
    """ClusterError when checkpoints could not be written there, or those of another run are there, before anything else
    is begun. `is_new`: the run has written none yet."""
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
    """With the credentials, region and endpoint of the environment, as the vendors' own tools read them."""
    if scheme == "gs":
        return pyarrow.fs.GcsFileSystem(retry_time_limit=timedelta(seconds=ATTEMPTS * REQUEST_SECONDS))
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

"""Objects of one empty bucket of an S3 server on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow.fs
from gemfleet.cluster.checkpoint_store.location import object_filesystem
from support.servers.object_store import make_bucket, objects_below, put_objects, s3_server

BUCKET = "bucket"


@contextmanager
def one_bucket() -> Iterator[None]:
    """The server and its bucket, which the environment names; what an earlier test left there is gone."""
    with s3_server():
        store = object_filesystem("s3", BUCKET)
        if store.get_file_info(BUCKET).type == pyarrow.fs.FileType.Directory:
            store.delete_dir_contents(BUCKET)
        else:
            make_bucket("s3", BUCKET)
        yield


def put(objects: dict[str, bytes]) -> None:
    """Objects of the bucket by key."""
    put_objects("s3", {f"{BUCKET}/{key}": content for key, content in objects.items()})


def stored() -> dict[str, bytes]:
    """Every object of the bucket by key."""
    return objects_below("s3", BUCKET)

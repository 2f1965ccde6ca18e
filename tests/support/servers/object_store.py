"""Checkpoints to send, to look at and to damage, wherever they rest; and an S3 server on loopback to rest in."""

from __future__ import annotations

import hashlib
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.fs
import pytest
from gemfleet.cluster.checkpoint_store.commit import CheckpointDisk
from gemfleet.cluster.checkpoint_store.location import checkpoints_folder, object_filesystem, open_disk
from gemfleet.cluster.checkpoint_store.manifest import FileEntry
from gemfleet.cluster.network import free_port

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
CONTENT = b"weights" * 1000
STORES = ("s3", "s3rver", "gs")  # each is a fixture too
PLACES = ("head", "mount", *STORES)


@contextmanager
def s3_server() -> Iterator[None]:
    """The environment names it, as it would a real one; also that of processes started meanwhile."""
    server_module = pytest.importorskip("moto.server", reason="needs moto, of the dev extra")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
            patch.setenv(name, value)
        patch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        yield
    server.stop()


@contextmanager
def gs_server() -> Iterator[None]:
    """As `s3_server`, of Google's interface."""
    module = pytest.importorskip("gcp_storage_emulator.server", reason="needs gcp-storage-emulator, of the dev extra")
    port = free_port("127.0.0.1")
    server = module.create_server("127.0.0.1", port, in_memory=True)
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", f"http://127.0.0.1:{port}")
        yield
    server.stop()


def scheme_of(store: str) -> str:
    return "gs" if store == "gs" else "s3"


def new_bucket(scheme: str = "s3") -> str:
    """Its address for `cluster.storage`."""
    name = f"gemfleet-{uuid.uuid4().hex[:12]}"
    make_bucket(scheme, name)
    return f"{scheme}://{name}/team/runs"


def make_bucket(scheme: str, name: str) -> None:
    if scheme == "gs":
        pyarrow.fs.GcsFileSystem(anonymous=True, project_id="lab").create_dir(name)
    else:
        endpoint = os.environ["AWS_ENDPOINT_URL"]
        pyarrow.fs.S3FileSystem(endpoint_override=endpoint, allow_bucket_creation=True).create_dir(name)


def put_objects(scheme: str, objects: dict[str, bytes]) -> None:
    """Objects by bucket and key."""
    for key, content in objects.items():
        with object_filesystem(scheme, "").open_output_stream(key, compression=None) as stream:
            stream.write(content)


def objects_below(scheme: str, folder: str) -> dict[str, bytes]:
    """Every object below a bucket and a prefix, by the rest of its key."""
    store = object_filesystem(scheme, "")
    found = store.get_file_info(pyarrow.fs.FileSelector(folder, recursive=True))
    paths = [info.path for info in found if info.is_file]
    return {
        path.removeprefix(f"{folder}/"): store.open_input_stream(path, compression=None).readall() for path in paths
    }


@dataclass(frozen=True)
class Kept:
    """The checkpoints of one run. `storage`: as `cluster.storage`."""

    storage: str | None
    run_folder: Path

    @classmethod
    def at(cls, place: str, folder: Path, run_id: str = "run-1") -> Kept:
        (folder / "mount").mkdir(exist_ok=True, parents=True)
        kept_here = {"head": None, "mount": str(folder / "mount")}
        storage = kept_here[place] if place in kept_here else new_bucket(scheme_of(place))
        return cls(storage, folder / "home" / "runs" / run_id)

    def open(self) -> CheckpointDisk:
        return open_disk(self.storage, self.run_folder)

    def read(self, step: int, name: str) -> bytes:
        with self._filesystem.open_input_stream(self._key(step, name)) as stream:
            return bytes(stream.read())

    def write(self, step: int, name: str, content: bytes) -> None:
        self._filesystem.create_dir(self._key(step, name).rpartition("/")[0])
        with self._filesystem.open_output_stream(self._key(step, name)) as stream:
            stream.write(content)

    def delete(self, step: int, name: str) -> None:
        self._filesystem.delete_file(self._key(step, name))

    def names(self, step: int) -> list[str]:
        """All files of a checkpoint, hidden ones too."""
        base = self._key(step, "")
        found = self._filesystem.get_file_info(
            pyarrow.fs.FileSelector(base.rstrip("/"), recursive=True, allow_not_found=True)
        )
        return sorted(info.path.removeprefix(base) for info in found if info.is_file)

    @property
    def _filesystem(self) -> pyarrow.fs.FileSystem:
        if checkpoints_folder(self.storage, self.run_folder) is None:
            return object_filesystem((self.storage or "")[:2], "")
        return pyarrow.fs.LocalFileSystem()

    def _key(self, step: int, name: str) -> str:
        folder = checkpoints_folder(self.storage, self.run_folder)
        base = str(folder) if folder else f"{(self.storage or '')[5:]}/{self.run_folder.name}/checkpoints"
        return f"{base}/checkpoint-{step}/{name}"


def entry_of(name: str, content: bytes = CONTENT) -> FileEntry:
    return FileEntry(name, len(content), hashlib.sha256(content).hexdigest())


def send(disk: CheckpointDisk, step: int, generation: int, name: str, content: bytes = CONTENT) -> FileEntry:
    """One file in two chunks, the second first."""
    half = len(content) // 2
    disk.begin(step, generation, name)
    for offset, part in ((half, content[half:]), (0, content[:half])):
        disk.write(step, generation, name, offset, np.frombuffer(part, dtype=np.uint8))
    disk.finish(step, generation, entry_of(name, content))
    return entry_of(name, content)


def commit(disk: CheckpointDisk, step: int, generation: int, content: bytes = CONTENT) -> None:
    assert disk.declare(step, generation, 0, [send(disk, step, generation, "a.bin", content)], [0]) is not None

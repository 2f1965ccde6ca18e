"""What is particular about checkpoints in an object store: no rename, a network between, and names of buckets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from gemfleet.cluster.checkpoint_store import location
from gemfleet.cluster.checkpoint_store.location import check_storage, is_storage
from gemfleet.cluster.errors import ClusterError, RunConflict, StoreError
from support.servers.object_store import CONTENT, Kept, commit, entry_of, send

# Ends the process without any clean-up at the moment it would write the named key.
DIES_INSIDE_A_COMMIT = """
import os, sys
from pathlib import Path
from gemfleet.cluster.checkpoint_store.object_shelf import ObjectShelf
from gemfleet.cluster.checkpoint_store.location import open_disk

storage, run_folder, key = sys.argv[1:]
real = ObjectShelf._writing

def dying(self, step, name):
    stream = real(self, step, name)
    if name == key:
        stream.write(b"half of it")
        os._exit(9)
    return stream

ObjectShelf._writing = dying
open_disk(storage, Path(run_folder)).declare(3, 1, 1, [], [0, 1])
"""


@pytest.fixture
def kept(s3: None, tmp_path: Path) -> Kept:
    return Kept.at("s3", tmp_path)


@pytest.mark.parametrize("key", ["a.bin", "deep/b.bin", "manifest.json"])
def test_a_crash_inside_a_commit_leaves_no_checkpoint_and_loses_nothing(kept: Kept, key: str) -> None:
    disk = kept.open()
    disk.begin_attempt()
    entries = [send(disk, 3, 1, "a.bin"), send(disk, 3, 1, "deep/b.bin")]
    assert disk.declare(3, 1, 0, entries, [0, 1]) is None
    child = [sys.executable, "-c", DIES_INSIDE_A_COMMIT, str(kept.storage), str(kept.run_folder), key]
    assert subprocess.run(child, check=False).returncode == 9
    again = kept.open()
    assert again.shelf.manifests() == []
    manifest = again.declare(3, 1, 1, [], [0, 1])  # the rank whose call was cut off repeats it
    assert manifest is not None
    again.shelf.verify(manifest)
    assert kept.names(3) == ["a.bin", "deep/b.bin", "manifest.json"]


def test_what_a_crash_left_is_swept_by_the_next_attempt(kept: Kept) -> None:
    disk = kept.open()
    disk.begin_attempt()
    commit(disk, 1, 1)
    kept.write(2, "a.bin", CONTENT)
    disk.begin_attempt()
    assert kept.names(2) == []
    assert disk.shelf.newest_verified()[1] == []


def test_a_late_rank_of_an_older_attempt_changes_no_key(kept: Kept) -> None:
    disk = kept.open()
    disk.begin_attempt()
    entry = send(disk, 1, 1, "a.bin")
    disk.begin_attempt()
    with pytest.raises(StoreError, match="attempt 2 of this run has begun"):
        disk.declare(1, 1, 0, [entry], [0])
    assert kept.names(1) == []


def test_a_storage_out_of_reach_fails_the_commit_and_keeps_what_arrived(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = kept.open()
    disk.begin_attempt()
    entry = send(disk, 1, 1, "a.bin")
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        patch.setattr(location, "ATTEMPTS", 2)
        unreachable = kept.open()
        with pytest.raises(StoreError, match="cannot be"):
            unreachable.declare(1, 1, 0, [entry], [0])
    assert kept.open().declare(1, 1, 0, [entry], [0]) is not None


def test_what_is_read_was_fetched_once_and_checked(kept: Kept) -> None:
    disk = kept.open()
    disk.begin_attempt()
    commit(disk, 1, 1)
    assert disk.read(1, "a.bin", 7, 7) == b"weights"
    kept.write(1, "a.bin", b"changed later")
    assert disk.read(1, "a.bin", 0, 7) == b"weights"
    with pytest.raises(StoreError, match="bytes, its manifest says"):
        disk.shelf.verify(disk.shelf.manifest(1))
    with pytest.raises(StoreError, match="cannot be read"):
        disk.read(9, "a.bin", 0, 1)
    assert entry_of("a.bin") in disk.shelf.manifest(1).files


def test_a_wrong_storage_is_told_before_anything_starts(kept: Kept, tmp_path: Path) -> None:
    check_storage(kept.storage, kept.run_folder)
    assert kept.names(0) == []
    for place in ("s3://gemfleet-no-such-bucket/runs", str(tmp_path / "not-mounted")):
        with pytest.raises(ClusterError, match=rf"cluster.storage is {place}, where no checkpoint can be written"):
            check_storage(place, kept.run_folder)


@pytest.mark.parametrize("text", ["s3://bucket", "s3://bucket/a/b-c", "gs://bucket_1/x", "/mnt/shared"])
def test_places_that_are_understood(text: str) -> None:
    assert is_storage(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "bucket/prefix", "./folder", "s3:/bucket", "s3://", "s3://Bucket/a", "https://bucket/a", "file:///mnt"),
        *("s3://key:secret@bucket/a", "s3://bucket/a?access_key=x", "s3://bucket/../other", "/mnt/../etc", "/mnt/\0"),
    ],
)
def test_places_that_are_refused(text: str) -> None:
    """Keys and options in an address would be kept in files, logs and the API: they are read from the environment."""
    assert not is_storage(text)


def test_a_new_run_finds_no_checkpoints_of_an_older_one_where_it_saves(kept: Kept) -> None:
    disk = kept.open()
    disk.begin_attempt()
    check_storage(kept.storage, kept.run_folder, is_new=True)
    commit(disk, 1, 1)
    check_storage(kept.storage, kept.run_folder)  # of a run that goes on
    with pytest.raises(RunConflict, match="checkpoint-1 is of an older run of the id"):
        check_storage(kept.storage, kept.run_folder, is_new=True)

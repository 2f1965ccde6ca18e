"""The store's disk when things go wrong: crashes inside a commit, a full disk, names and links it must refuse."""

from __future__ import annotations

import hashlib
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gemfleet.cluster.checkpoint_store.commit import CheckpointDisk
from gemfleet.cluster.checkpoint_store.folder_shelf import FolderShelf
from gemfleet.cluster.checkpoint_store.manifest import FileEntry
from gemfleet.cluster.durable import write_durably
from gemfleet.cluster.errors import StoreError

# Ends the process without any clean-up at the moment the named method of Path touches a name that ends so.
DIES_INSIDE_A_COMMIT = """
import os, sys
from pathlib import Path
from gemfleet.cluster.checkpoint_store.commit import CheckpointDisk
from gemfleet.cluster.checkpoint_store.manifest import FileEntry

root, method, ending, sha256 = sys.argv[1:]
real = getattr(Path, method)

def dying(self, *arguments, **options):
    if any(str(path).endswith(ending) for path in (self, *arguments)):
        os._exit(9)
    return real(self, *arguments, **options)

setattr(Path, method, dying)
CheckpointDisk(Path(root)).declare(3, 1, 1, [], [0, 1])
"""


def send(disk: CheckpointDisk, step: int, name: str, content: bytes = b"weights") -> FileEntry:
    entry = FileEntry(name, len(content), hashlib.sha256(content).hexdigest())
    disk.begin(step, 1, name)
    disk.write(step, 1, name, 0, np.frombuffer(content, dtype=np.uint8))
    disk.finish(step, 1, entry)
    return entry


@pytest.fixture
def disk(tmp_path: Path) -> CheckpointDisk:
    disk = CheckpointDisk(tmp_path / "checkpoints")
    disk.begin_attempt()
    return disk


@pytest.mark.parametrize(
    ("method", "ending", "committed"),
    [("replace", "manifest.json", False), ("rename", "checkpoint-3", False), ("unlink", ".rank-0", True)],
)
def test_a_crash_inside_a_commit_loses_nothing(disk: CheckpointDisk, method: str, ending: str, committed: bool) -> None:
    entry = send(disk, 3, "a.bin")
    assert disk.declare(3, 1, 0, [entry], [0, 1]) is None
    child = [sys.executable, "-c", DIES_INSIDE_A_COMMIT, str(disk.root), method, ending, entry.sha256]
    assert subprocess.run(child, check=False).returncode == 9
    again = CheckpointDisk(disk.root)
    assert bool(again.shelf.manifests()) is committed
    manifest = again.declare(3, 1, 1, [], [0, 1])  # the rank whose call was cut off repeats it
    assert manifest is not None
    assert manifest.files == (entry,)
    assert isinstance(again.shelf, FolderShelf)
    manifest.verify(again.shelf.folder(3))


def test_a_full_disk_poisons_the_upload_and_publishes_nothing(disk: CheckpointDisk) -> None:
    content = np.zeros(1 << 20, dtype=np.uint8)
    entry = FileEntry("a.bin", 2 * content.nbytes, hashlib.sha256(bytes(2 << 20)).hexdigest())
    disk.begin(3, 1, "a.bin")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 19, limits[1]))  # the second chunk crosses it half-way
    try:
        disk.write(3, 1, "a.bin", 0, content)
        with pytest.raises(StoreError, match="cannot be written on the head"):
            disk.write(3, 1, "a.bin", content.nbytes, content)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    # There is room again, but a retried last chunk alone must not make a whole file of what is there.
    with pytest.raises(StoreError, match="begin it again"):
        disk.write(3, 1, "a.bin", content.nbytes, content)
    with pytest.raises(StoreError, match="not published"):
        disk.finish(3, 1, entry)
    assert disk.shelf.newest_verified() == (None, [])


def test_a_failed_replacement_keeps_the_old_content(tmp_path: Path) -> None:
    target = tmp_path / "snapshot.json"
    write_durably(target, b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, limits[1]))
    try:
        with pytest.raises(OSError, match="large"):
            write_durably(target, bytes(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("name", ["manifest.json", ".rank-0", "folder/.a.bin.part"])
def test_names_of_the_store_itself_are_refused(disk: CheckpointDisk, name: str) -> None:
    with pytest.raises(StoreError, match="keeps for itself"):
        disk.begin(3, 1, name)


def test_two_ranks_may_not_send_the_same_name(disk: CheckpointDisk) -> None:
    entry = send(disk, 3, "a.bin")
    disk.declare(3, 1, 0, [entry], [0, 1])
    with pytest.raises(StoreError, match="two ranks sent a file of the same name"):
        disk.declare(3, 1, 1, [entry], [0, 1])
    assert disk.shelf.manifests() == []


def test_a_link_cannot_lead_out_of_the_store(disk: CheckpointDisk, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    disk.declare(3, 1, 0, [send(disk, 3, "a.bin")], [0])
    assert isinstance(disk.shelf, FolderShelf)
    (disk.shelf.folder(3) / "link").symlink_to(outside)
    with pytest.raises(StoreError, match="leaves the checkpoint store"):
        disk.read(3, "link/secret", 0, 10)
    (disk.root / ".incoming-4-1").mkdir()
    (disk.root / ".incoming-4-1" / "link").symlink_to(outside)
    with pytest.raises(StoreError, match="leaves the checkpoint store"):
        disk.begin(4, 1, "link/new")
    assert sorted(path.name for path in outside.iterdir()) == ["secret"]
    with pytest.raises(StoreError, match="leaves the checkpoint's folder"):
        disk.read(3, "../generation", 0, 10)


def test_a_step_that_is_committed_stays_as_it_is(disk: CheckpointDisk) -> None:
    first = disk.declare(3, 1, 0, [send(disk, 3, "a.bin")], [0])
    again = disk.declare(3, 1, 0, [send(disk, 3, "a.bin", b"other")], [0])
    assert again == first
    assert sorted(path.name for path in disk.root.iterdir()) == ["checkpoint-3", "generation"]

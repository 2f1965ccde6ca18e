"""The commit protocol: a checkpoint is whole or absent, and only the newest attempt may write."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from gemfleet.cluster.checkpoint_store.disk import CheckpointDisk
from gemfleet.cluster.checkpoint_store.files import StoredFiles
from gemfleet.cluster.checkpoint_store.manifest import FileEntry, Manifest
from gemfleet.cluster.errors import StaleGeneration, StoreError

CONTENT = b"weights" * 1000


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


@pytest.fixture
def disk(tmp_path: Path) -> CheckpointDisk:
    disk = CheckpointDisk(tmp_path / "checkpoints")
    assert disk.begin_attempt() == 1
    return disk


def test_commits_when_the_last_rank_declares_in_any_order(disk: CheckpointDisk) -> None:
    assert disk.declare(3, 1, 1, [send(disk, 3, 1, "rank1/b.bin")], [0, 1]) is None
    assert disk.manifests() == []
    assert disk.declare(3, 1, 0, [send(disk, 3, 1, "a.bin")], [0, 1]) is not None
    (manifest,) = disk.manifests()
    manifest.verify(disk.folder(3))
    assert [entry.path for entry in manifest.files] == ["a.bin", "rank1/b.bin"]
    assert sorted(p.name for p in disk.folder(3).iterdir()) == ["a.bin", "manifest.json", "rank1"]


def test_a_restarted_store_goes_on(disk: CheckpointDisk) -> None:
    disk.declare(3, 1, 1, [send(disk, 3, 1, "b.bin")], [0, 1])
    disk.begin(3, 1, "a.bin")
    disk.write(3, 1, "a.bin", 0, np.frombuffer(CONTENT[:10], dtype=np.uint8))
    again = CheckpointDisk(disk.root)
    again.write(3, 1, "a.bin", 10, np.frombuffer(CONTENT[10:], dtype=np.uint8))
    again.finish(3, 1, entry_of("a.bin"))
    assert again.declare(3, 1, 0, [entry_of("a.bin")], [0, 1]) is not None


def test_repeating_any_call_changes_nothing(disk: CheckpointDisk) -> None:
    entry = send(disk, 3, 1, "a.bin")
    disk.finish(3, 1, entry)
    first = disk.declare(3, 1, 0, [entry], [0])
    assert disk.declare(3, 1, 0, [entry], [0]) == first


def test_an_older_attempt_can_write_nothing(disk: CheckpointDisk) -> None:
    entry = send(disk, 3, 1, "a.bin")
    assert disk.begin_attempt() == 2
    for refused in (
        lambda: disk.begin(3, 1, "a.bin"),
        lambda: disk.write(3, 1, "a.bin", 0, np.zeros(1, np.uint8)),
        lambda: disk.finish(3, 1, entry),
        lambda: disk.declare(3, 1, 0, [entry], [0]),
    ):
        with pytest.raises(StaleGeneration, match="attempt 2 of this run has begun"):
            refused()
    assert [path.name for path in disk.root.iterdir()] == ["generation"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "never sent"])
def test_what_arrives_damaged_is_not_published(disk: CheckpointDisk, damage: str) -> None:
    sent = {"truncated": CONTENT[:-1], "flipped": b"X" + CONTENT[1:], "never sent": b""}[damage]
    disk.begin(3, 1, "a.bin")
    if sent:
        disk.write(3, 1, "a.bin", 0, np.frombuffer(sent, dtype=np.uint8))
    with pytest.raises(StoreError, match="incomplete or damaged"):
        disk.finish(3, 1, entry_of("a.bin"))
    with pytest.raises(StoreError, match="missing"):
        disk.declare(3, 1, 0, [entry_of("a.bin")], [0])
    assert disk.manifests() == []


def test_the_first_error_poisons_the_upload(disk: CheckpointDisk, tmp_path: Path) -> None:
    disk.begin(3, 1, "a.bin")
    part = disk.root / ".incoming-3-1" / ".a.bin.part"
    part.mkdir()  # writing to a folder fails, as a full disk would
    with pytest.raises(StoreError, match="cannot be written on the head"):
        disk.write(3, 1, "a.bin", 0, np.frombuffer(CONTENT, dtype=np.uint8))
    part.rmdir()
    with pytest.raises(StoreError, match="begin it again"):
        disk.write(3, 1, "a.bin", 10, np.frombuffer(CONTENT, dtype=np.uint8))
    with pytest.raises(StoreError, match="not published"):
        disk.finish(3, 1, entry_of("a.bin"))
    commit(disk, 3, 1)


@pytest.mark.parametrize("name", ["../escape", "/etc/passwd", "a/../../b", "", "a/", "a\0b"])
def test_no_name_leaves_the_folder(disk: CheckpointDisk, name: str) -> None:
    with pytest.raises(StoreError, match="leaves the checkpoint's folder"):
        disk.begin(3, 1, name)


@pytest.mark.parametrize("damage", ["flip", "truncate", "no manifest", "manifest cut"])
def test_a_damaged_newest_one_falls_back_and_says_so(disk: CheckpointDisk, damage: str) -> None:
    commit(disk, 1, 1)
    commit(disk, 2, 1, b"newer" * 100)
    data, manifest = disk.folder(2) / "a.bin", disk.folder(2) / "manifest.json"
    if damage == "flip":
        data.write_bytes(b"N" + data.read_bytes()[1:])
    elif damage == "truncate":
        data.write_bytes(data.read_bytes()[:-1])
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text(manifest.read_text()[:40])
    newest, damaged = disk.newest_verified()
    assert newest is not None
    assert newest.step == 1
    assert len(damaged) == 1
    assert "checkpoint-2" in damaged[0]
    commit(disk, 2, 1, b"again" * 100)
    newest, damaged = disk.newest_verified()
    assert newest is not None
    assert (newest.step, damaged) == (2, [])


def test_retention_never_removes_the_newest_that_verifies(disk: CheckpointDisk) -> None:
    for step in (1, 2, 3):
        commit(disk, step, 1)
    (disk.folder(3) / "a.bin").write_bytes(b"damaged")
    assert disk.retain(1) == [1]
    assert [m.step for m in disk.manifests()] == [2, 3]


def test_sweep_removes_what_no_manifest_names(disk: CheckpointDisk) -> None:
    commit(disk, 1, 1)
    (disk.root / "checkpoint-7").mkdir()
    (disk.root / "checkpoint-7" / "a.bin").write_bytes(CONTENT)
    assert disk.sweep() == ["checkpoint-7"]
    assert [m.step for m in disk.manifests()] == [1]


def test_a_manifest_of_a_newer_schema_or_with_foreign_paths_is_refused(disk: CheckpointDisk) -> None:
    commit(disk, 1, 1)
    path = disk.folder(1) / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "schema_version": 2}))
    with pytest.raises(StoreError, match="schema"):
        Manifest.read(disk.folder(1))
    content["files"][0]["path"] = "../../secret"
    path.write_text(json.dumps(content))
    with pytest.raises(StoreError, match="leaves the checkpoint's folder"):
        Manifest.read(disk.folder(1))


def test_state_files_are_replaced_whole_and_stay_inside(tmp_path: Path) -> None:
    files = StoredFiles(tmp_path / "ray")
    files.replace("exp/snapshot.json", b"old")
    files.replace("exp/snapshot.json", b"new and longer")
    assert files.read("exp/snapshot.json") == b"new and longer"
    assert [info[0] for info in files.list("exp", False, False)] == ["exp/snapshot.json"]
    with pytest.raises(StoreError, match="leaves the run's folder"):
        files.read("../../outside")
    (tmp_path / "outside").write_text("secret")
    (tmp_path / "ray" / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(StoreError, match="leaves the run's folder"):
        files.read("link")
    files.remove("exp")
    files.remove("exp")
    assert files.info(["exp"])[0][1] == "absent"


def test_retention_keeps_the_best_by_a_metric_too(disk: CheckpointDisk) -> None:
    for step, loss in ((1, 3.0), (2, 1.0), (3, None), (4, 2.0), (5, None)):
        metrics = {} if loss is None else {"eval_loss": loss}
        assert disk.declare(step, 1, 0, [send(disk, step, 1, "a.bin")], [0], metrics) is not None
    assert disk.retain(2, "eval_loss") == [1, 3]
    assert [m.step for m in disk.manifests()] == [2, 4, 5]
    assert disk.retain(1) == [2, 4]


def test_all_ranks_of_an_attempt_resume_from_the_same_one(disk: CheckpointDisk) -> None:
    commit(disk, 1, 1)
    first, _ = disk.resume_point(1)
    commit(disk, 2, 1)
    assert disk.resume_point(1)[0] == first
    disk.begin_attempt()
    newest, _ = disk.resume_point(2)
    assert newest is not None
    assert newest.step == 2
    with pytest.raises(StaleGeneration):
        disk.resume_point(1)


def test_an_empty_checkpoint_is_not_committed(disk: CheckpointDisk) -> None:
    with pytest.raises(StoreError, match="no rank sent any file"):
        disk.declare(3, 1, 0, [], [0])
    assert disk.manifests() == []

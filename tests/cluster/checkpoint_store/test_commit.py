"""The commit protocol: a checkpoint is whole or absent, and only the newest attempt may write; wherever it rests."""

from __future__ import annotations

import errno
import json
import os
import pathlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gemfleet.cluster.checkpoint_store.commit import CheckpointDisk
from gemfleet.cluster.checkpoint_store.files import StoredFiles
from gemfleet.cluster.checkpoint_store.manifest import Manifest
from gemfleet.cluster.errors import StaleGeneration, StoreError
from support.fault_table import tell
from support.servers.object_store import CONTENT, PLACES, STORES, Kept, commit, entry_of, send


@pytest.fixture(params=PLACES)
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Kept:
    if request.param in STORES:
        request.getfixturevalue(request.param)
    return Kept.at(request.param, tmp_path)


@pytest.fixture
def disk(kept: Kept) -> CheckpointDisk:
    disk = kept.open()
    assert disk.begin_attempt() == 1
    return disk


def test_commits_when_the_last_rank_declares_in_any_order(disk: CheckpointDisk, kept: Kept) -> None:
    assert disk.declare(3, 1, 1, [send(disk, 3, 1, "rank1/b.bin")], [0, 1]) is None
    assert disk.shelf.manifests() == []
    assert disk.declare(3, 1, 0, [send(disk, 3, 1, "a.bin")], [0, 1]) is not None
    (manifest,) = disk.shelf.manifests()
    disk.shelf.verify(manifest)
    manifest.verify(disk.shelf.at_hand(3))
    assert [entry.path for entry in manifest.files] == ["a.bin", "rank1/b.bin"]
    assert kept.names(3) == ["a.bin", "manifest.json", "rank1/b.bin"]


def test_a_restarted_store_goes_on(disk: CheckpointDisk, kept: Kept) -> None:
    disk.declare(3, 1, 1, [send(disk, 3, 1, "b.bin")], [0, 1])
    disk.begin(3, 1, "a.bin")
    disk.write(3, 1, "a.bin", 0, np.frombuffer(CONTENT[:10], dtype=np.uint8))
    again = kept.open()
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
    assert disk.shelf.manifests() == []


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
def test_a_damaged_newest_one_falls_back_and_says_so(disk: CheckpointDisk, kept: Kept, damage: str) -> None:
    commit(disk, 1, 1)
    commit(disk, 2, 1, b"newer" * 100)
    if damage == "flip":
        kept.write(2, "a.bin", b"N" + kept.read(2, "a.bin")[1:])
    elif damage == "truncate":
        kept.write(2, "a.bin", kept.read(2, "a.bin")[:-1])
    elif damage == "no manifest":
        kept.delete(2, "manifest.json")
    else:
        kept.write(2, "manifest.json", kept.read(2, "manifest.json")[:40])
    newest, damaged = disk.shelf.newest_verified()
    assert newest is not None
    assert newest.step == 1
    assert len(damaged) == 1
    assert "checkpoint-2" in damaged[0]
    commit(disk, 2, 1, b"again" * 100)
    newest, damaged = disk.shelf.newest_verified()
    assert newest is not None
    assert (newest.step, damaged) == (2, [])


def test_retention_never_removes_the_newest_that_verifies(disk: CheckpointDisk, kept: Kept) -> None:
    for step in (1, 2, 3):
        commit(disk, step, 1)
    kept.write(3, "a.bin", b"damaged")
    assert disk.retain(1) == [1]
    assert [m.step for m in disk.shelf.manifests()] == [2, 3]


def test_sweep_removes_what_no_manifest_names(disk: CheckpointDisk, kept: Kept) -> None:
    commit(disk, 1, 1)
    kept.write(7, "a.bin", CONTENT)
    assert disk.sweep() == ["checkpoint-7"]
    assert [m.step for m in disk.shelf.manifests()] == [1]


def test_a_manifest_of_a_newer_schema_or_with_foreign_paths_is_refused(disk: CheckpointDisk, kept: Kept) -> None:
    commit(disk, 1, 1)
    content = json.loads(kept.read(1, "manifest.json"))
    kept.write(1, "manifest.json", json.dumps({**content, "schema_version": 2}).encode())
    with pytest.raises(StoreError, match="schema"):
        disk.shelf.manifest(1)
    content["files"][0]["path"] = "../../secret"
    kept.write(1, "manifest.json", json.dumps(content).encode())
    with pytest.raises(StoreError, match="leaves the checkpoint's folder"):
        disk.shelf.manifest(1)


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
    assert [m.step for m in disk.shelf.manifests()] == [2, 4, 5]
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
    assert disk.shelf.manifests() == []


def test_the_newest_that_is_known_to_be_whole_is_not_hashed_again(
    disk: CheckpointDisk, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retention after every save: each checkpoint is read back once at most, in an object store before others go."""
    read: list[int] = []
    real = disk.shelf.verify

    def verify(manifest: Manifest) -> None:
        read.append(manifest.step)
        real(manifest)

    monkeypatch.setattr(disk.shelf, "verify", verify)
    for step in (1, 2, 3):
        commit(disk, step, 1)
        disk.retain(1)
        disk.retain(1)
    assert read == ([2, 3] if "://" in (kept.storage or "") else [])
    assert [m.step for m in disk.shelf.manifests()] == [3]


def test_without_one_that_verifies_nothing_goes(disk: CheckpointDisk, kept: Kept) -> None:
    for step in (1, 2):
        commit(disk, step, 1)
        kept.write(step, "a.bin", b"damaged")
    assert disk.retain(1) == []


def test_a_new_head_disk_takes_up_the_generations_of_its_storage(disk: CheckpointDisk, kept: Kept) -> None:
    """The count of attempts is on the head; should that be lost, older attempts are still older."""
    disk.begin_attempt()
    commit(disk, 1, 2)
    (disk.root / "generation").unlink()
    assert kept.open().begin_attempt() == 3


def test_what_ranks_gave_up_goes_with_the_next_commit(disk: CheckpointDisk) -> None:
    send(disk, 1, 1, "a.bin")
    commit(disk, 2, 1)
    assert list(disk.root.glob(".incoming-*")) == []


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE])
@pytest.mark.parametrize("name", ["a.bin", "manifest.json"])
def test_one_that_cannot_be_read_is_passed_over_as_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, name: str
) -> None:
    """By whoever starts an attempt, resumes, verifies, commits or retains; and it is not swept away."""
    disk = Kept.at("head", tmp_path).open()
    disk.begin_attempt()
    for step in (1, 2):
        commit(disk, step, 1)
    unreadable = disk.shelf.at_hand(2) / name
    monkeypatch.setattr(pathlib.Path, "open", failing_for(unreadable, code, pathlib.Path.open))
    monkeypatch.setattr(pathlib.Path, "stat", failing_for(unreadable, code, pathlib.Path.stat))
    again = Kept.at("head", tmp_path).open()
    assert again.begin_attempt() == 2
    newest, damaged = again.resume_point(2)
    assert newest is not None
    assert newest.step == 1
    assert ["checkpoint-2" in sentence and os.strerror(code) in sentence for sentence in damaged] == [True]
    assert [problem is None for _, problem in again.shelf.verify_all()] == [True, False]
    assert again.retain(1) == []
    monkeypatch.undo()
    assert [manifest.step for manifest in again.shelf.manifests()] == [1, 2]
    tell(f"{name} of the newest checkpoint: {os.strerror(code)}", "passed over, and kept", "checkpoint-1")


def failing_for(path: Path, code: int, real: Callable[..., Any]) -> Callable[..., Any]:
    def called(self: Path, *arguments: Any, **options: Any) -> Any:
        if self == path:
            raise OSError(code, os.strerror(code), str(self))
        return real(self, *arguments, **options)

    return called


@pytest.mark.parametrize(
    "odd",
    [
        {"files": []},
        {"files": {}},
        {"files": [{"path": "a.bin", "size": "7000", "sha256": "0" * 64}]},
        {"files": [{"path": "a.bin", "size": True, "sha256": "0" * 64}]},
        {"files": [{"path": "a.bin", "size": -1, "sha256": "0" * 64}]},
        {"files": [{"path": 7, "size": 7, "sha256": "0" * 64}]},
        {"files": [{"path": "a.bin", "size": 7, "sha256": None}]},
        {"files": [{"path": "a.bin", "size": 7, "sha256": "0" * 64}] * 2},
        {"step": "2"},
        {"step": 1},
        {"generation": 1.5},
        {"generation": None},
        {"created_at": "now"},
        {"metrics": []},
        {"metrics": {"eval_loss": "low"}},
        {"another": 1},
    ],
)
def test_a_manifest_without_files_or_with_other_types_is_damaged(tmp_path: Path, odd: dict[str, Any]) -> None:
    disk = Kept.at("head", tmp_path).open()
    disk.begin_attempt()
    for step in (1, 2):
        commit(disk, step, 1)
    path = disk.shelf.at_hand(2) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **odd}))
    newest, damaged = disk.shelf.newest_verified()
    assert newest is not None
    assert (newest.step, len(damaged)) == (1, 1)
    assert disk.begin_attempt() == 2
    assert disk.retain(1, "eval_loss") == []


def test_a_manifest_that_no_file_can_be_is_damaged(tmp_path: Path) -> None:
    disk = Kept.at("head", tmp_path).open()
    disk.begin_attempt()
    commit(disk, 1, 1)
    path = disk.shelf.at_hand(1) / "manifest.json"
    for content in (b"[]", b"null", b"[" * 100_000, b"\xff\xfe", b""):
        path.write_bytes(content)
        assert disk.shelf.newest_verified()[0] is None
    path.unlink()
    os.mkfifo(path)  # to open it would wait for ever
    assert disk.shelf.newest_verified()[0] is None


@pytest.mark.parametrize("first", ["old", "new"])
def test_of_a_commit_and_a_sweep_at_once_one_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """What is left is whole, and the store of the older attempt removes nothing that the newer one reads."""
    kept = Kept.at("head", tmp_path)
    old, new = kept.open(), kept.open()
    old.begin_attempt()
    commit(old, 1, 1)
    entry = send(old, 2, 1, "a.bin")
    publish = old.shelf.publish

    def publish_beside(manifest: Manifest, folder: Path) -> None:
        if first == "old":
            publish(manifest, folder)
        assert new.begin_attempt() == 2  # sweeps what is on its way
        assert new.resume_point(2)[0] == new.shelf.newest_verified()[0]
        if first == "new":
            publish(manifest, folder)

    monkeypatch.setattr(old.shelf, "publish", publish_beside)
    committed = old.declare(2, 1, 0, [entry], [0])
    assert (committed is not None) == (first == "old")
    assert old.retain(1) == []
    newest, damaged = kept.open().shelf.newest_verified()
    assert newest is not None
    assert (newest.step, damaged) == (2 if first == "old" else 1, [])
    assert [path.name for path in old.root.glob(".*") if path.is_dir()] == []
    tell(f"a store commits while that of the next attempt sweeps, the {first} one first", "one is whole")


def test_what_retention_removes_while_it_is_read_is_not_damaged(
    disk: CheckpointDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(disk, 1, 1)
    reader, verify = disk.shelf, disk.shelf.verify

    def verify_beside(manifest: Manifest) -> None:
        if manifest.step == 1:
            monkeypatch.setattr(reader, "verify", verify)
            commit(disk, 2, 1)
            assert disk.retain(1) == [1]
        verify(manifest)

    monkeypatch.setattr(reader, "verify", verify_beside)
    newest, damaged = reader.newest_verified()
    assert newest is not None
    assert (newest.step, damaged) == (2, [])
    commit(disk, 3, 1)
    manifests = reader.manifests()
    monkeypatch.setattr(reader, "manifests", lambda: manifests)
    monkeypatch.setattr(reader, "_read_all", lambda: [(m.step, m) for m in manifests])
    reader.remove(2)
    assert reader.verify_all() == [("checkpoint-3", None)]


def test_a_damaged_number_of_the_attempt_is_found_again(tmp_path: Path) -> None:
    disk = Kept.at("head", tmp_path).open()
    for _ in range(3):
        disk.begin_attempt()
    commit(disk, 1, 3)
    (disk.root / "generation").write_text("")
    assert Kept.at("head", tmp_path).open().begin_attempt() == 4


def test_a_removal_that_was_cut_off_is_finished_by_the_next_attempt(tmp_path: Path) -> None:
    disk = Kept.at("head", tmp_path).open()
    disk.begin_attempt()
    commit(disk, 1, 1)
    (disk.root / "checkpoint-1").rename(disk.root / ".removed-checkpoint-1-00")
    assert disk.shelf.verify_all() == []
    disk.begin_attempt()
    assert list(disk.root.glob(".removed-*")) == []

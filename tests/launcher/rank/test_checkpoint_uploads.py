"""Checkpoints behind the training steps: one in flight, nothing half-sent, and failures that surface."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from gemfleet.cluster.errors import StoreError
from gemfleet.launcher.rank.checkpoint_uploads import CheckpointUploads
from gemfleet.launcher.rank.outbox import Outbox
from gemfleet.launcher.rank.reporter import RayReporter
from gemfleet.train.checkpoint.state import CHECKPOINT_FILES


class SlowHead:
    """Takes a checkpoint only when it is told to."""

    def __init__(self) -> None:
        self.go_on = threading.Semaphore(0)
        self.arrived: list[tuple[int, list[str]]] = []
        self.told: list[Mapping[str, Any]] = []

    def send(self, step: int, folder: Path, metrics: Mapping[str, float]) -> None:
        assert self.go_on.acquire(timeout=10)
        self.arrived.append((step, sorted(path.name for path in folder.iterdir())))


def write(folder: Path) -> None:
    (folder / "a").write_text("content")


def fail(folder: Path) -> None:
    raise OSError(28, "No space left on device")


def test_a_save_waits_only_for_the_one_before(tmp_path: Path) -> None:
    head = SlowHead()
    uploads = CheckpointUploads(head.send, tmp_path, head.told.append)
    assert uploads.save(1, write, {}) < 1.0
    assert not uploads.wait(0.05)
    threading.Timer(0.3, head.go_on.release).start()
    assert uploads.save(2, write, {}) > 0.2
    assert head.arrived == [(1, ["a"])]
    head.go_on.release()
    assert uploads.wait(5)
    uploads.close(1)
    assert head.arrived == [(1, ["a"]), (2, ["a"])]
    assert list(tmp_path.iterdir()) == []


def test_a_lost_checkpoint_is_told_and_the_next_one_mends_it(tmp_path: Path) -> None:
    head = SlowHead()
    uploads = CheckpointUploads(head.send, tmp_path, head.told.append)
    uploads.save(1, fail, {})
    uploads.wait()
    assert uploads.failed
    assert [entry["event"] for entry in head.told] == ["checkpoint_failed"]
    assert "checkpoint-1 was lost" in head.told[0]["message"]
    assert "No space left" in head.told[0]["message"]
    head.go_on.release()
    uploads.save(2, write, {})
    uploads.close(5)
    assert not uploads.failed
    assert list(tmp_path.iterdir()) == []


def test_a_rank_without_room_on_its_own_disk_tells_so(tmp_path: Path) -> None:
    told: list[Mapping[str, Any]] = []
    uploads = CheckpointUploads(SlowHead().send, tmp_path / "gone", told.append)
    uploads.save(1, write, {})
    uploads.close(5)
    assert uploads.failed
    assert "checkpoint-1 was lost" in told[0]["message"]


def test_the_state_is_let_go_once_it_is_written(tmp_path: Path) -> None:
    import weakref

    class State:
        def __call__(self, folder: Path) -> None:
            write(folder)

    head, state = SlowHead(), State()
    uploads = CheckpointUploads(head.send, tmp_path, head.told.append)
    held = weakref.ref(state)
    uploads.save(1, state, {})
    del state
    deadline = time.monotonic() + 5
    while held() is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert held() is None
    head.go_on.release()
    uploads.close(5)


class FakeStore:
    def __init__(self) -> None:
        self.uploaded: list[int] = []
        self.error: Exception | None = None

    def upload(self, step: int, folder: Path, rank: int, ranks: Any, metrics: Any) -> bool:
        if self.error:
            raise self.error
        self.uploaded.append(step)
        return True


class FakeOutbox:
    stop_wanted = False

    def __init__(self) -> None:
        self.records: list[Mapping[str, Any]] = []

    def put(self, record: Mapping[str, Any]) -> None:
        self.records.append(record)

    def flush(self) -> bool:
        return True


def reporter(store: FakeStore, outbox: FakeOutbox, work: Path, stop: bool = False) -> RayReporter:
    return RayReporter(store, outbox, 0, work, lambda phase: None, stop)  # type: ignore[arg-type]


def write_all(folder: Path) -> None:
    for name in CHECKPOINT_FILES:
        (folder / name).write_text(name)


def test_half_a_checkpoint_is_never_declared(tmp_path: Path) -> None:
    """A rank whose peer died leaves its work folder while a copy is in flight; once that committed 0 bytes."""
    store, outbox = FakeStore(), FakeOutbox()
    ranks = reporter(store, outbox, tmp_path)
    ranks.save_checkpoint(1, write, {})
    ranks.finish()
    assert store.uploaded == []
    assert "was gone before it was sent" in outbox.records[-1]["message"]
    ranks.save_checkpoint(2, write_all, {})
    ranks.finish()
    ranks.close()
    assert store.uploaded == [2]


def test_the_records_of_a_checkpoints_steps_are_on_the_head_before_it(tmp_path: Path) -> None:
    """A run goes on from the checkpoint, so records that were lost with the rank would never be made again."""
    head: list[Any] = []

    class Store(FakeStore):
        def upload(self, step: int, *arguments: Any) -> bool:
            head.append(step)
            return True

    def take(batch: list[Any], mark: str) -> bool:
        head.extend(record["step"] for record in batch)
        return False

    outbox = Outbox(take, interval_seconds=60.0)
    ranks = reporter(Store(), outbox, tmp_path)  # type: ignore[arg-type]
    for step in (1, 2):
        ranks.log_step({"step": step})
    ranks.save_checkpoint(20, write_all, {})
    assert ranks._uploads.wait(5.0)
    assert head == [1, 2, 20]
    ranks.close()
    outbox.close(1.0)


@pytest.mark.parametrize("stop", [True, False])
def test_a_full_disk_ends_the_run_only_where_it_is_asked_to(tmp_path: Path, stop: bool) -> None:
    store, outbox = FakeStore(), FakeOutbox()
    ranks = reporter(store, outbox, tmp_path, stop)
    assert not ranks.should_stop()
    store.error = StoreError("no space left on the head")
    ranks.save_checkpoint(1, write_all, {})
    ranks.finish()
    assert ranks.should_stop() is stop
    ranks.close()

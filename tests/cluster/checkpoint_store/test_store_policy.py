"""The store beside its commit protocol: what stays, and how full the head's disk may become. No Ray."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gemfleet.cluster.checkpoint_store.actor import CheckpointStore, StorePolicy
from gemfleet.cluster.checkpoint_store.manifest import FileEntry
from gemfleet.cluster.errors import StoreError

CONTENT = b"weights" * 100


class FakeRecorder:
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def event(self, *arguments: Any) -> None:
        self.calls.append(("event", *arguments))

    def checkpoint_committed(self, *arguments: Any) -> None:
        self.calls.append(("checkpoint_committed", *arguments))


def save(store: CheckpointStore, step: int, generation: int, loss: float | None = None) -> bool:
    entry = FileEntry("a.bin", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    store.begin(step, generation, "a.bin", len(CONTENT))
    store.write(step, generation, "a.bin", 0, np.frombuffer(CONTENT, dtype=np.uint8))
    store.finish(step, generation, entry)
    return store.declare(step, generation, 0, [entry], [0], {} if loss is None else {"eval_loss": loss})


def start(folder: Path, **policy: Any) -> tuple[CheckpointStore, FakeRecorder, int]:
    recorder = FakeRecorder()
    store = CheckpointStore(str(folder), recorder, StorePolicy(**policy))  # type: ignore[arg-type]
    return store, recorder, store.begin_attempt()


def test_what_goes_is_told_to_the_recorder(tmp_path: Path) -> None:
    store, recorder, generation = start(tmp_path, keep=1, best_of="eval_loss")
    for step, loss in ((1, 2.0), (2, 1.0), (3, 3.0), (4, None)):
        assert save(store, step, generation, loss)
    assert [manifest.step for manifest in store.manifests()] == [2, 4]
    assert [(call[1], call[5]) for call in recorder.calls] == [(1, []), (2, [1]), (3, []), (4, [3])]
    assert all(0 < call[6] < 60 for call in recorder.calls)  # seconds from the first file to the commit


def test_the_disk_warns_before_it_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, recorder, generation = start(tmp_path, warn_free_bytes=10_000, refuse_free_bytes=5_000)
    free = 20_000
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))
    save(store, 1, generation)
    assert [call[0] for call in recorder.calls] == ["checkpoint_committed"]
    free = 9_000
    save(store, 2, generation)
    assert [call[:2] for call in recorder.calls if call[0] == "event"] == [("event", "disk_low")]
    free = 5_000 + len(CONTENT) - 1
    with pytest.raises(StoreError, match="too few"):
        save(store, 3, generation)
    assert [manifest.step for manifest in store.manifests()] == [1, 2]


def test_a_recorder_that_fails_does_not_fail_the_rank(tmp_path: Path) -> None:
    store, recorder, generation = start(tmp_path)

    def fail(*arguments: Any) -> None:
        raise OSError("no registry")

    recorder.checkpoint_committed = fail  # type: ignore[method-assign]
    assert save(store, 1, generation)

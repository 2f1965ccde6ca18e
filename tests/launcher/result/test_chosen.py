"""Which checkpoint is published: the best that is whole, the last, or the one that a person names, and why."""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from gemfleet.cluster.checkpoint_store.folder_shelf import FolderShelf
from gemfleet.cluster.checkpoint_store.manifest import FileEntry, Manifest
from gemfleet.cluster.checkpoint_store.shelf import doomed_steps
from gemfleet.cluster.errors import StoreError
from gemfleet.launcher.config.schema import LaunchConfig
from gemfleet.launcher.result.chosen import choose, pick, refuse_unsaved
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.errors import UserError
from hypothesis import given
from hypothesis import strategies as st

LOSSES = st.none() | st.floats(0, 9) | st.sampled_from([math.nan, math.inf])


def manifests(losses: list[float | None]) -> list[Manifest]:
    """A checkpoint every ten steps with these evaluation losses."""
    entry = FileEntry("a", 1, "0" * 64)
    each = enumerate(losses, 1)
    return [Manifest(10 * n, 1, 0.0, (entry,), {} if loss is None else {"eval_loss": loss}) for n, loss in each]


@pytest.mark.parametrize(
    ("losses", "asked", "before", "sentence"),
    [
        ([2.5, 1.87, 1.9, 2.03], "best", 3.0, "step 20 of 60: lowest evaluation loss 1.8700 (last: 2.0300 at step 40)"),
        (
            [2.5, 1.87],
            "best",
            1.5,
            "step 20 of 60: lowest evaluation loss 1.8700; before training it was lower: 1.5000",
        ),
        ([2.5, None], "best", None, "step 10 of 60: lowest evaluation loss 2.5000 (last: not evaluated, step 20)"),
        ([None, None], "best", None, "step 20 of 60: the last, as none has an evaluation loss"),
        ([1.5, math.nan], "best", None, "step 10 of 60: lowest evaluation loss 1.5000 (last: nan at step 20)"),
        ([1.5, 1.5], "best", None, "step 10 of 60: lowest evaluation loss 1.5000 (last: 1.5000 at step 20)"),
        ([1.5, 1.7], "last", None, "step 20 of 60: the last (lowest: 1.5000 at step 10)"),
        ([1.5, 1.7, 1.9], 20, None, "step 20 of 60: as asked (last: 1.9000 at step 30)"),
    ],
)
def test_the_choice_and_its_reason(losses: list[float | None], asked: str | int, before: float, sentence: str) -> None:
    chosen = choose(manifests(losses), asked, 60, before)  # type: ignore[arg-type]
    assert chosen is not None
    assert chosen.reason == sentence
    assert chosen.eval_loss == manifests(losses)[chosen.step // 10 - 1].metrics.get("eval_loss")


@given(st.lists(LOSSES, min_size=1, max_size=6), st.integers(1, 3))
def test_retention_never_removes_what_would_be_published(losses: list[float | None], keep: int) -> None:
    found = manifests(losses)
    chosen = choose(found, "best", 60)
    assert chosen is not None
    assert chosen.step not in doomed_steps(found, keep, "eval_loss")


def test_a_damaged_best_gives_way_to_the_next_best_and_it_is_said(tmp_path: Path) -> None:
    for step, loss in ((10, 1.9), (20, 1.8), (30, 2.0)):
        entries = [{"step": 0, "eval_loss": 2.5}, {"step": step, "eval_loss": loss}]
        state = json.dumps({"max_steps": 30, "log_history": entries}).encode()
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_bytes(state)
        files = (FileEntry("trainer_state.json", len(state), hashlib.sha256(state).hexdigest()),)
        (folder / "manifest.json").write_text(Manifest(step, 1, 0.0, files, {"eval_loss": loss}).to_json())
    shelf = FolderShelf(tmp_path)
    picked, damaged = pick(shelf, "best")
    assert (picked.chosen.step, picked.folder.name, damaged) == (20, "checkpoint-20", [])
    assert json.loads(picked.history)["log_history"][-1]["step"] == 30
    (tmp_path / "checkpoint-20" / "trainer_state.json").write_text("{}")
    picked, damaged = pick(shelf, "best")
    assert picked.chosen.reason == "step 10 of 30: lowest evaluation loss 1.9000 (last: 2.0000 at step 30)"
    assert [sentence.partition(":")[0] for sentence in damaged] == ["checkpoint-20"]
    with pytest.raises(StoreError, match=r"of step 20 \(checkpoint-20: .* has 2 bytes"):
        pick(shelf, 20)
    with pytest.raises(StoreError, match="there are: 10, 20, 30"):
        pick(shelf, 25)


@pytest.mark.parametrize(
    ("asked", "every", "problem"),
    [
        (70, 10, "the run has 60 steps"),
        (35, 10, "saves no checkpoint at that step"),
        (30, "epoch", None),
        (35, "epoch", "every is epoch"),
        (30, "never", "every is never"),
        (60, "never", None),
        ("best", "never", None),
    ],
)
def test_a_step_that_is_never_saved_is_refused(asked: Any, every: Any, problem: str | None) -> None:
    data = {"train": "x.jsonl"}
    train = TrainConfig.model_validate({"model": "m", "data": data, "epochs": 2.0, "checkpoint": {"every": every}})
    with pytest.raises(UserError, match=problem) if problem else nullcontext():
        refuse_unsaved(asked, train, 30)
    with pytest.raises(ValueError, match=r"cluster\.keep_checkpoints is 2, which may remove"):
        LaunchConfig.model_validate(
            {"train": {"model": "m", "data": data}, "output": {"checkpoint": 5}, "cluster": {"keep_checkpoints": 2}}
        )

"""Features that the head keeps: another run takes them in place of the tower, and computes the same bits."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from gemfleet.cluster.errors import StoreError
from gemfleet.launcher.cli import app
from gemfleet.launcher.rank.head_features import HeadFeatures
from gemfleet.launcher.runs.registry import registry_of
from gemfleet.train.model.vision import sight as sight_module
from gemfleet.train.model.vision.kept import CHECKSUM_BYTES, FeatureFolder, feature_folder, tower_key, unused_since
from gemfleet.train.model.vision.sight import load_sight
from support.picture_steps import Pictures, picture_count, train_with_pictures
from support.rank_pool import RankPool
from support.tiny_multimodal import save_tiny_multimodal
from typer.testing import CliRunner

CPU = torch.device("cpu")
HEAD = {"vision": {"cache": "head"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_multimodal(tmp_path_factory.mktemp("multimodal"))


def brought(model: Path, place: Path, keeper: FeatureFolder, pictures: Pictures) -> torch.Tensor:
    """The features of all pictures, in the way of a run whose scratch folder is `place`."""
    features = load_sight(model, pictures, torch.float32, CPU).features
    features.keep(pictures.pictures, place, lambda: None, keeper, tower_key(model, torch.float32, CPU))
    return features.of(pictures.pictures)


def test_a_second_run_has_no_tower(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keeper, pictures = FeatureFolder(tmp_path / "kept", 1 << 20), Pictures(20)
    first = brought(folder, tmp_path / "first", keeper, pictures)

    def no_tower(*arguments: object) -> None:
        raise AssertionError("the tower was loaded")

    pictures.asked.clear()
    monkeypatch.setattr(sight_module, "load_tower", no_tower)
    assert torch.equal(brought(folder, tmp_path / "second", keeper, pictures), first)
    assert not pictures.asked


def test_a_damaged_entry_is_made_again(folder: Path, tmp_path: Path) -> None:
    keeper, pictures = FeatureFolder(tmp_path / "kept", 1 << 20), Pictures(5)
    first = brought(folder, tmp_path / "first", keeper, pictures)
    (place,) = (tmp_path / "kept").iterdir()
    for name, content in (("100", b""), ("101", b"short"), ("102", (place / "102").read_bytes()[::-1])):
        (place / name).write_bytes(content)
    (place / "103").unlink()
    pictures.asked.clear()
    assert torch.equal(brought(folder, tmp_path / "second", keeper, pictures), first)
    assert sorted(pictures.asked) == [100, 101, 102, 103]
    pictures.asked.clear()
    brought(folder, tmp_path / "third", keeper, pictures)
    assert not pictures.asked


def test_the_oldest_go_where_all_are_too_large(tmp_path: Path) -> None:
    keeper = FeatureFolder(tmp_path, 10_000)
    for number in range(8):
        keeper.put("key", {number: bytes(996)})
        os.utime(tmp_path / "key" / str(number), (number + 1, number + 1))
    assert list(keeper.fetch("key", [0, 1])) == [0, 1]  # and are used again by that
    for number in range(8, 12):
        keeper.put("key", {number: bytes(996)})
    left = {int(one.path.name) for one in keeper.entries()}
    assert {0, 1, 8, 9, 10, 11} <= left
    assert sum(one.bytes for one in keeper.entries()) <= 10_000
    assert not left & {2, 3}
    old = unused_since(keeper.entries(), days=365)
    assert {int(one.path.name) for one in old} == left & set(range(2, 8))
    keeper.remove(keeper.entries())
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemfleet.train.model.vision.kept.FULL", 0.0)
    keeper = FeatureFolder(tmp_path, 10_000)
    keeper.put("key", {1: b"features"})
    assert keeper.fetch("key", [1]) == {}


def test_prune_removes_what_no_run_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMFLEET_HOME", str(tmp_path))
    registry_of(tmp_path)
    keeper = feature_folder(1 << 20)
    keeper.put("key", {1: b"old", 2: b"new"})
    os.utime(keeper.folder / "key" / "1", (1, 1))
    for options, removed, left in (([], False, 2), (["--yes"], True, 1)):
        command = ["prune", "--pictures", "--older-than", "7", "--json", *options]
        found = CliRunner().invoke(app, command, catch_exceptions=False)
        assert json.loads(found.stdout) == [{"features": 1, "bytes": 3 + CHECKSUM_BYTES, "removed": removed}]
        assert len(keeper.entries()) == left
    assert keeper.fetch("key", [1, 2]) == {2: b"new"}
    assert "features of 0 pictures" in CliRunner().invoke(app, ["prune", "--pictures", "--older-than", "7"]).stdout


def test_another_tower_or_dtype_has_its_own_features(folder: Path, tmp_path: Path) -> None:
    other = save_tiny_multimodal(tmp_path / "other", seed=1)
    keys = {tower_key(folder, torch.float32, CPU), tower_key(folder, torch.bfloat16, CPU)}
    assert len(keys | {tower_key(other, torch.float32, CPU)}) == 3
    assert tower_key(folder, torch.float32, CPU) in keys


def test_a_head_that_does_not_answer_costs_one_question() -> None:
    class Gone:
        asked = 0

        def call(self, method: str, *arguments: object) -> None:
            self.asked += 1
            raise StoreError("gemfleet-features on the head did not answer")

    actor = Gone()
    features = HeadFeatures(actor, 1 << 20)  # type: ignore[arg-type]
    assert features.fetch("key", [1]) == {}
    features.put("key", {1: b"features"})
    assert actor.asked == 1


def test_runs_resumes_and_trials_compute_the_same_bits(folder: Path, tmp_path: Path) -> None:
    """The run with the tower; two ranks and one with kept features; a trial with another learning rate."""
    everything = np.arange(100, 100 + picture_count()).tolist()
    with RankPool(2) as pool:
        without = pool.run(train_with_pictures, str(folder), str(tmp_path / "without"), {})[0]
        first = pool.run(train_with_pictures, str(folder), str(tmp_path / "first"), HEAD)[0]
        second = pool.run(train_with_pictures, str(folder), str(tmp_path / "second"), HEAD)[0]
    assert without.towered == first.towered == everything[::2]  # each rank makes its part
    assert second.towered == []
    assert second.tower_flops == [0.0] * 6
    assert first.losses == second.losses == without.losses
    assert first.evaluations == second.evaluations == without.evaluations
    changes = HEAD | {"optim": {"learning_rate": 0.5}}
    with RankPool(1) as pool:
        trial = pool.run(train_with_pictures, str(folder), str(tmp_path / "trial"), changes)[0]
        small = {"vision": {"cache": "head", "head_cache": 100}}
        unkept = pool.run(train_with_pictures, str(folder), str(tmp_path / "unkept"), small)[0]
    assert (trial.towered, unkept.towered) == ([], everything)

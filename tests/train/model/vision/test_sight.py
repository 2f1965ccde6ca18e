"""A multimodal Gemma 3 with pictures computes what transformers' own class computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gemfleet.train.config.sections.recipe import OptimConfig
from gemfleet.train.data.packing import TokenBlock, pack_block, pack_steps
from gemfleet.train.interfaces import PackedRows
from gemfleet.train.kernels.compilation import has_compiler
from gemfleet.train.model.gemma import TrainableModel, attach_lora, load_base_model
from gemfleet.train.model.vision import features
from gemfleet.train.model.vision.sight import load_sight
from gemfleet.train.strategies.ddp import DdpStrategy
from support.picture_steps import (
    IMAGE,
    STRATEGIES,
    Pictures,
    Seen,
    examples_with_pictures,
    picture_count,
    reference_with_pictures,
    train_with_pictures,
)
from support.rank_pool import RankPool
from support.reference_step import LORA, Gradients, fill_adapters, relative_difference
from support.tiny_multimodal import save_tiny_multimodal

CPU = torch.device("cpu")
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_multimodal(tmp_path_factory.mktemp("multimodal"))


def trainable(folder: Path, pictures: Pictures) -> TrainableModel:
    sight = load_sight(folder, pictures, torch.float32, CPU)
    model = attach_lora(load_base_model(folder, torch.float32, CPU), LORA, 0, str(folder), sight=sight)
    fill_adapters(model.peft_model)
    return model


def step(model: TrainableModel, block: TokenBlock, max_length: int, micro: int) -> tuple[float, Gradients]:
    strategy = DdpStrategy(OptimConfig())
    strategy.setup(model)
    step = pack_steps([block], 1, max_length).step(0, 0)
    total = 0.0
    for part in step.rows.micro_batches(micro):
        loss = model.loss_sum(part) / step.step_supervised_tokens
        strategy.backward(loss)
        total += float(loss.detach())
    strategy.reduce_gradients()
    return total, {name: p.grad for name, p in model.adapter_parameters().items() if p.grad is not None}


@pytest.mark.parametrize(("max_length", "micro"), [(64, 100), (64, 1), (40, 1)], ids=["packed", "passes", "unpacked"])
def test_loss_and_gradients_equal_those_of_transformers(folder: Path, max_length: int, micro: int) -> None:
    pictures, block = Pictures(picture_count()), examples_with_pictures()
    loss, gradients = step(trainable(folder, pictures), block, max_length, micro)
    expected_loss, expected = reference_with_pictures(folder, pictures, block)
    assert loss == pytest.approx(expected_loss, rel=TOLERANCE)
    assert relative_difference(gradients, expected) < TOLERANCE


def document_losses(model: TrainableModel, rows: PackedRows) -> list[float]:
    """The summed loss of each document of one packed pass, each supervised in turn."""
    ends = np.cumsum(rows.document_lengths)
    losses = []
    for start, end in zip(ends - rows.document_lengths, ends, strict=True):
        own = (np.arange(len(rows.tokens)) > start) & (np.arange(len(rows.tokens)) < end)
        losses.append(float(model.loss_sum(replace(rows, supervised=own & (rows.tokens != IMAGE))).detach()))
    return losses


def test_changing_a_picture_changes_its_document_alone(folder: Path) -> None:
    pictures, rows = Pictures(picture_count()), pack_block(examples_with_pictures(), 64)
    model = trainable(folder, pictures)
    before = document_losses(model, rows)
    for picture, start in zip(rows.pictures.tolist(), rows.picture_starts.tolist(), strict=True):
        pictures.change(picture)
        own = int(np.searchsorted(np.cumsum(rows.document_lengths), start, side="right"))
        after = document_losses(model, rows)
        assert [old != new for old, new in zip(before, after, strict=True)] == [n == own for n in range(len(before))]
        pictures.change(picture)


def test_kept_features_give_the_same_bits(folder: Path, tmp_path: Path) -> None:
    pictures, rows = Pictures(picture_count()), pack_block(examples_with_pictures(), 64)
    model = trainable(folder, pictures)
    assert model.sight is not None
    anew = model.loss_sum(rows)
    assert model.take_pictures_seen() == picture_count()
    pictures.asked.clear()
    model.sight.features.keep(pictures.pictures, tmp_path / "features", lambda: None)
    kept = [model.loss_sum(rows) for _ in range(2)]
    assert all(torch.equal(anew, loss) for loss in kept)
    assert sorted(pictures.asked) == pictures.pictures.tolist()
    assert model.take_pictures_seen() == 0


def test_features_without_room_are_made_in_each_step(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "MOST_OF_DISK", 0.0)
    model = trainable(folder, Pictures(2))
    assert model.sight is not None
    model.sight.features.keep(np.arange(100, 102), tmp_path / "features", lambda: None)
    assert model.take_pictures_seen() == 0
    model.sight.features.of(np.array([100, 101, 100]))
    assert model.take_pictures_seen() == 3


def same_run(found: Seen, expected: Seen) -> bool:
    ours, theirs = (np.array([*run.losses, *run.grad_norms, *run.evaluations]) for run in (found, expected))
    return len(ours) > 12 and bool(np.allclose(ours, theirs, rtol=TOLERANCE, atol=0))


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    with RankPool(1) as pool:
        place = tmp_path_factory.mktemp("alone") / "run"
        seen: Seen = pool.run(train_with_pictures, str(folder), str(place), STRATEGIES["ddp"])[0]
    return seen


@pytest.mark.parametrize(
    ("ranks", "names"),
    [
        pytest.param(1, [*STRATEGIES], marks=pytest.mark.slow),
        (2, ["ddp", "fsdp2"]),
        pytest.param(2, ["recomputed", "zero-2", "zero-3"], marks=pytest.mark.slow),
    ],
)
def test_every_strategy_sees_the_same(
    folder: Path, tmp_path: Path, alone: Seen, ranks: int, names: Sequence[str]
) -> None:
    """The tower has seen all pictures before the first step, whose loss is that of transformers (see above)."""
    assert (alone.tower_flops, sum(alone.pictures)) == ([0.0] * 6, 3 * picture_count())
    failed = []
    with RankPool(ranks) as pool:
        for name in names:
            changes = STRATEGIES[name]
            found = pool.run(train_with_pictures, str(folder), str(tmp_path / name), changes)[0]
            if not same_run(found, alone):
                failed.append((name, found, alone))
    assert not failed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [({"precision": "bf16"}, 0.02), ({"quantization": "int4"}, 0.02), ({"quantization": "int8"}, 0.01)],
    ids=["bf16", "int4", "int8"],
)
def test_fewer_bits_see_nearly_the_same(
    folder: Path, tmp_path: Path, alone: Seen, changes: dict[str, Any], tolerance: float
) -> None:
    """In bf16 by block products. Of a quantised base, the tower keeps its bits."""
    with RankPool(1) as pool:
        found = pool.run(train_with_pictures, str(folder), str(tmp_path / "run"), changes)[0]
    assert found.losses == pytest.approx(alone.losses, rel=tolerance)
    assert found.losses != alone.losses


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(), reason="needs a C++ compiler")
def test_compiled_layers_see_the_same(folder: Path, tmp_path: Path, alone: Seen) -> None:
    with RankPool(1) as pool:
        found = pool.run(train_with_pictures, str(folder), str(tmp_path / "run"), {"compile": True})[0]
    assert found.losses == pytest.approx(alone.losses, rel=1e-3)

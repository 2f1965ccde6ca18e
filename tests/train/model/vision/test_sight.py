"""A multimodal Gemma 3 with pictures computes what transformers' own class computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gemfleet.train.config.sections.recipe import OptimConfig
from gemfleet.train.data.packing import TokenBlock, pack_steps
from gemfleet.train.model.gemma import TrainableModel, attach_lora, load_base_model
from gemfleet.train.model.vision.sight import load_sight
from gemfleet.train.strategies.ddp import DdpStrategy
from support.pictures import Pictures, examples_with_pictures, picture_count, reference_with_pictures
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

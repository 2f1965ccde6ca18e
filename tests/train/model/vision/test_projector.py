"""A projector that is trained beside the adapters learns, resumes, and is published for the original class."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from gemfleet.train.checkpoint.lineage import refuse_other_shapes
from gemfleet.train.checkpoint.state import save_adapter
from gemfleet.train.errors import UserError
from gemfleet.train.model.gemma import attach_lora, load_base_model
from gemfleet.train.model.merge import merge_adapter
from gemfleet.train.model.starting_adapter import ADAPTER_FILE
from gemfleet.train.model.vision.sight import load_sight
from peft import PeftModel
from safetensors.torch import load_file
from support.picture_steps import (
    IMAGE,
    STRATEGIES,
    Pictures,
    Seen,
    examples_with_pictures,
    normalised,
    padded,
    picture_count,
    train_with_pictures,
)
from support.rank_pool import RankPool
from support.reference_step import LORA, fill_adapters
from support.strategy_cases import strategy_config
from support.tiny_multimodal import save_tiny_multimodal
from transformers import Gemma3ForConditionalGeneration

PROJECTOR = {"vision": {"train": "projector"}}
MORE = ("zero-1", "zero-3")
SHARED: dict[str, dict[str, Any]] = {**STRATEGIES, "zero-1": {"strategy": "deepspeed", "deepspeed": {"stage": 1}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_multimodal(tmp_path_factory.mktemp("multimodal"))


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Seen]:
    place = tmp_path_factory.mktemp("trained") / "run"
    with RankPool(2) as pool:
        seen = pool.run(train_with_pictures, str(folder), str(place), PROJECTOR)[0]
    return place, seen


def test_the_original_class_loads_it_and_computes_the_same(folder: Path, trained: tuple[Path, Seen]) -> None:
    place, seen = trained
    checkpoint = place / "checkpoint-6"
    original = Gemma3ForConditionalGeneration.from_pretrained(folder)
    before = original.model.multi_modal_projector.mm_input_projection_weight.detach().clone()
    model = PeftModel.from_pretrained(original, checkpoint).eval()
    again = model.load_adapter(str(checkpoint), "again")
    assert ([key for key in again.missing_keys if "again" in key], again.unexpected_keys) == ([], [])
    saved = load_file(checkpoint / ADAPTER_FILE)
    assert not saved["base_model.model.model.multi_modal_projector.mm_input_projection_weight"].equal(before)
    block = examples_with_pictures().select([1, 2])
    batch = padded(block)
    labels = batch.pop("labels")
    logits = model(**batch, pixel_values=normalised(Pictures(picture_count()), block.pictures)).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
    assert IMAGE in batch["input_ids"]
    assert float(loss.detach()) == pytest.approx(seen.evaluations[-1], rel=1e-4)


@pytest.mark.parametrize("name", ["fsdp2", pytest.param("zero-3", marks=pytest.mark.slow)])
def test_it_resumes(folder: Path, trained: tuple[Path, Seen], tmp_path: Path, name: str) -> None:
    place, seen = trained
    (tmp_path / "run").mkdir()
    shutil.copytree(place / "checkpoint-3", tmp_path / "run" / "checkpoint-3")
    with RankPool(1) as pool:
        changes = SHARED[name] | PROJECTOR
        resumed = pool.run(train_with_pictures, str(folder), str(tmp_path / "run"), changes)[0]
    assert resumed.losses == pytest.approx(seen.losses[3:], rel=1e-4)
    assert resumed.evaluations[-1] == pytest.approx(seen.evaluations[-1], rel=1e-4)


def test_a_checkpoint_without_it_is_no_beginning_for_it(trained: tuple[Path, Seen]) -> None:
    made = json.loads((trained[0] / "checkpoint-6" / "training_config.json").read_text())
    with pytest.raises(
        UserError, match=r"train\.vision\.train is none, but the checkpoint x was written with projector"
    ):
        refuse_other_shapes("x", made, strategy_config())


@pytest.mark.parametrize(
    "name",
    ["fsdp2", "zero-2", pytest.param("zero-1", marks=pytest.mark.slow), pytest.param("zero-3", marks=pytest.mark.slow)],
)
def test_every_strategy_trains_it(folder: Path, trained: tuple[Path, Seen], tmp_path: Path, name: str) -> None:
    """Adapters and projector at the end, whole and in fp32, and the norm of all gradients in each step."""
    expected = load_file(trained[0] / "checkpoint-6" / ADAPTER_FILE)
    with RankPool(2) as pool:
        seen = pool.run(train_with_pictures, str(folder), str(tmp_path / "run"), SHARED[name] | PROJECTOR)[0]
    assert seen.losses == pytest.approx(trained[1].losses, rel=1e-4)
    assert seen.grad_norms == pytest.approx(trained[1].grad_norms, rel=1e-3)
    found = load_file(tmp_path / "run" / "checkpoint-6" / ADAPTER_FILE)
    assert found.keys() == expected.keys()
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert max(float((found[key] - tensor).abs().max()) for key, tensor in expected.items()) < 1e-3


def test_it_begins_as_the_bases_beside_an_adapter_to_go_on_from(folder: Path, tmp_path: Path) -> None:
    device, kind = torch.device("cpu"), torch.float32
    first = attach_lora(load_base_model(folder, kind, device), LORA, 0, "base")
    fill_adapters(first.peft_model)
    adapters = {name: p.detach() for name, p in first.adapter_parameters().items()}
    save_adapter(tmp_path, first, adapters)
    sight = load_sight(folder, Pictures(1), kind, device, trained=True)
    before = {name: p.detach().clone() for name, p in sight.projector.named_parameters()}
    second = attach_lora(load_base_model(folder, kind, device), LORA, 1, "base", tmp_path, sight=sight)
    now = second.adapter_parameters()
    assert all(now[name].equal(tensor) for name, tensor in adapters.items())
    begun = {name.rpartition(".default.")[2]: p for name, p in now.items() if name not in adapters}
    assert begun.keys() == before.keys()
    assert all(begun[name].equal(tensor) for name, tensor in before.items())


def test_a_merge_takes_it_over(folder: Path, trained: tuple[Path, Seen], tmp_path: Path) -> None:
    checkpoint = trained[0] / "checkpoint-6"
    assert merge_adapter(folder, checkpoint, tmp_path / "merged") == 7 * 4 + 2
    merged = Gemma3ForConditionalGeneration.from_pretrained(tmp_path / "merged").model.multi_modal_projector
    saved = load_file(checkpoint / ADAPTER_FILE)
    for name, parameter in merged.named_parameters():
        assert torch.equal(parameter, saved[f"base_model.model.model.multi_modal_projector.{name}"])

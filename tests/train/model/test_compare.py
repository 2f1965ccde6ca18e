"""What a stranger loads is compared with the training loop, and what is not the same is told."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.config.sections.recipe import LoraConfig
from gemfleet.train.model.compare import compare_published, shortened
from gemfleet.train.model.comparison import NAMES, Comparison, FormComparison, parting, told
from gemfleet.train.model.gemma import attach_lora, load_base_model
from gemfleet.train.model.merge import merge_adapter
from gemfleet.train.model.predict import Question
from gemfleet.train.model.vision.sight import load_sight
from safetensors.torch import load_file, save_file
from support.picture_steps import IMAGE, SOFT_TOKENS, Pictures, examples_with_pictures, picture_count
from support.tiny_model import save_tiny_gemma3
from support.tiny_multimodal import save_tiny_multimodal

VALUES = {"model": "x", "data": {"train": "x"}, "precision": "fp32", "lora": {"r": 4}, "seed": 3}
CONFIG = TrainConfig.model_validate(VALUES)
PROMPTS = [Question(prompt, ()) for prompt in (tuple(range(2, 14)), (2, 40, 41), tuple(range(100, 130)))]
ADAPTER = "adapter_model.safetensors"


def make_forms(folder: Path, save: Callable[[Path], Path], projector: bool = False) -> Path:
    """A base, a trained adapter, its published copy and the merged model. projector: it is trained too"""
    save(folder / "base")
    device, kind = torch.device("cpu"), torch.float32
    sight = load_sight(folder / "base", Pictures(1), kind, device, trained=True) if projector else None
    model = attach_lora(load_base_model(folder / "base", kind, device), LoraConfig(r=4), 3, "base", sight=sight)
    for name, parameter in model.adapter_parameters().items():
        if "lora_" not in name or "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    generation = json.dumps({"eos_token_id": 1, "pad_token_id": 0})
    for name in ("trained", "published"):
        model.peft_model.save_pretrained(folder / name, save_embedding_layers=False)
        (folder / name / "generation_config.json").write_text(generation)
    merge_adapter(folder / "base", folder / "trained", folder / "merged")
    (folder / "merged" / "generation_config.json").write_text(generation)
    return folder


@pytest.fixture(params=[save_tiny_gemma3, save_tiny_multimodal])
def forms(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make_forms(tmp_path, request.param)


@pytest.fixture
def text_forms(tmp_path: Path) -> Path:
    return make_forms(tmp_path, save_tiny_gemma3)


def compared(
    folder: Path,
    config: TrainConfig = CONFIG,
    prompts: Sequence[Question] = PROMPTS,
    pictures: Pictures | None = None,
) -> Comparison:
    base, trained, published, merged = (folder / name for name in ("base", "trained", "published", "merged"))
    return compare_published(base, trained, published, merged, config, prompts, "a test", pictures=pictures)


def changed(path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    tensors = load_file(path)
    save_file(change(tensors), path, metadata={"format": "pt"})


def test_all_forms_are_equal(forms: Path) -> None:
    found = compared(forms)
    assert found.problems == []
    assert [form.form for form in found.forms] == ["adapter", "merged"]
    assert [form.equal for form in found.forms] == [3, 3]
    assert all(0 <= form.difference < 1e-4 for form in found.forms)
    assert found.forms[1].difference > 0
    assert found.prompts == 3 and found.tokens > 3  # noqa: PT018


def test_prompts_are_compared_with_their_pictures(tmp_path: Path) -> None:
    """By an adapter and a projector that were trained. Of a long prompt, a picture that is cut is left out."""
    place = make_forms(tmp_path, save_tiny_multimodal, projector=True)
    config = TrainConfig.model_validate({**VALUES, "vision": {"train": "projector"}})
    block, source = examples_with_pictures(), Pictures(picture_count())
    ends = zip(block.offsets[:-1].tolist(), block.offsets[1:].tolist(), strict=True)
    asked = []
    for start, end in ends:
        shown = slice(*np.searchsorted(block.picture_starts, [start, end]))
        starts = tuple((block.picture_starts[shown] - start).tolist())
        asked.append(
            Question(tuple(block.tokens[start:end].tolist()), (), tuple(block.pictures[shown].tolist()), starts)
        )
    long = Question((2, *[40] * 1020, 41, *[IMAGE] * SOFT_TOKENS, 42), (), (100,), (1022,))
    assert shortened(long, SOFT_TOKENS) == Question(long.prompt[:1022], ())
    found = compared(place, config, [*asked, long], source)
    assert found.problems == []
    assert [form.equal for form in found.forms] == [len(asked) + 1] * 2
    assert all(0 <= form.difference < 1e-4 for form in found.forms)
    blind = compared(place, CONFIG, [*asked, long], source)
    assert "computes other logits than the training loop" in blind.problems[0]  # whose projector is the base's there


def test_a_tensor_of_another_name_is_told(forms: Path) -> None:
    """peft only warns about names that it does not know."""

    def rename(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name.replace("layers.3.", "layers.33."): tensor for name, tensor in tensors.items()}

    changed(forms / "published" / ADAPTER, rename)
    found = compared(forms)
    assert "14 of 56 tensors that peft finds no module for" in found.problems[0]
    assert "layers.33." in found.problems[0]
    assert any("the published adapter computes other logits" in problem for problem in found.problems)


@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_another_scale_is_told(text_forms: Path, form: str) -> None:
    path = text_forms / "published" / "adapter_config.json"
    right = path.read_text()
    path.write_text(json.dumps(json.loads(right) | {"lora_alpha": 33}))
    if form == "merged":
        merge_adapter(text_forms / "base", text_forms / "published", text_forms / "merged")
        path.write_text(right)
    (problem,) = compared(text_forms).problems
    assert problem.startswith(
        f"the published {NAMES[form]} computes other logits than the training loop: they differ by"
    )


def test_an_answer_that_ends_elsewhere_is_told(text_forms: Path) -> None:
    """A merged model with other ends of an answer gives other answers by the same logits."""
    found = compared(text_forms)
    assert found.tokens == 96
    end = json.dumps({"eos_token_id": list(range(512)), "pad_token_id": 0})
    (text_forms / "merged" / "generation_config.json").write_text(end)
    (problem,) = compared(text_forms).problems
    assert "the published merged model gives 3 of 3 greedy answers otherwise" in problem


def test_where_answers_part() -> None:
    """The loop prefers 1, then 2, then 1 by a little."""
    logits = torch.tensor([[9.0, 9.0, 9.0], [0.0, 5.0, 0.0], [0.0, 0.0, 4.0], [0.0, 3.0, 2.5]])
    assert told((1, 2, 1), logits) == (1, 2, 1)
    assert told((1, 2, 2), logits) == (1, 2, 1)
    assert told((0, 2, 2), logits) == (1,)
    assert parting((1, 2, 1), (1, 2, 1), logits) is None
    assert parting((1, 2, 2), (1, 2, 2), logits) == 0.5
    assert parting((1, 2, 1), (1, 2, 2), logits) is None
    assert parting((1, 2), (1, 2, 1), logits) == math.inf
    assert parting((1, 2, 1, 0), (1, 2, 1), logits) == math.inf


def test_a_near_tie_is_no_problem_and_a_quantised_base_is_not_judged() -> None:
    def problem(difference: float, bound: float | None, margin: float) -> str:
        return FormComparison("merged", difference, 30.0, bound, 3, margin).problem(4)

    assert problem(0.5, 0.6, 1.1) == ""
    assert "1 of 4 greedy answers otherwise" in problem(0.5, 0.6, 1.3)
    assert "they differ by up to 0.7, where rounding explains 0.6" in problem(0.7, 0.6, 0.0)
    assert "differ by up to nan" in problem(math.nan, 0.6, 0.0)
    assert problem(9.0, None, math.inf) == ""

"""Parameters counted from the shape are those of transformers' and peft's own models, built without memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from gemfleet.benchmarks.shared.random_base import text_config
from gemfleet.train.config.sections.recipe import LoraConfig
from gemfleet.train.errors import UserError
from gemfleet.train.model.gemma import attach_lora
from gemfleet.train.planning import SIZES, ModelShape, shape_of_config
from gemfleet.train.planning.counts import language_parameters, lora_parameters, vision_parameters
from gemfleet.train.planning.shapes import LEFT_OUT
from support.tiny_model import tiny_config
from transformers import Gemma3Config, Gemma3ForCausalLM, Gemma3ForConditionalGeneration, Gemma3TextConfig


def multimodal_config(shape: ModelShape) -> Gemma3Config:
    vision = shape.vision
    assert vision is not None
    return Gemma3Config(
        text_config=text_config(shape).to_dict(),
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": vision.hidden,
            "intermediate_size": vision.inner,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": 16,
            "image_size": vision.image_pixels,
            "patch_size": vision.patch_pixels,
            "vision_use_head": False,
        },
    )


@pytest.mark.parametrize("size", SIZES)
def test_parameters_are_those_of_the_model(size: str) -> None:
    shape = SIZES[size]
    with torch.device("meta"):
        if shape.vision is None:
            model = Gemma3ForCausalLM(text_config(shape))
        else:
            model = Gemma3ForConditionalGeneration(multimodal_config(shape))
    counted = language_parameters(shape) + vision_parameters(shape)
    assert counted == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("size", "billions"), [("270m", 0.268), ("1b", 1.0), ("4b", 4.3), ("12b", 12.2), ("27b", 27.4)]
)
def test_sizes_are_the_published_ones(size: str, billions: float) -> None:
    shape = SIZES[size]
    assert (language_parameters(shape) + vision_parameters(shape)) / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_adapters_are_those_that_peft_makes(targets: Any) -> None:
    shape = replace(SIZES["270m"], layers=3)
    with torch.device("meta"):
        base = Gemma3ForCausalLM(text_config(shape))
        model = attach_lora(base, LoraConfig(r=8, target_modules=targets), seed=0, base_name="x")
    assert lora_parameters(shape, 8, targets) == sum(p.numel() for p in model.adapter_parameters().values())


def test_a_config_file_gives_the_shape() -> None:
    config = tiny_config(layers=4)
    shape = shape_of_config(config.to_dict(), "tiny")
    with torch.device("meta"):
        model = Gemma3ForCausalLM(config)
    assert shape.sliding_layers == 2
    assert language_parameters(shape) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("size", ["4b", "12b", "27b"])
def test_a_multimodal_config_file_gives_the_published_shape(size: str) -> None:
    assert shape_of_config(multimodal_config(SIZES[size]).to_dict(), size) == SIZES[size]


def test_what_a_published_config_file_leaves_out_is_what_transformers_takes_for_it() -> None:
    """google/gemma-3-4b-it names the sizes of its decoder alone."""
    whole = multimodal_config(SIZES["4b"]).to_dict()
    text = {key: whole["text_config"][key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    assert shape_of_config({**whole, "text_config": {**text, "sliding_window": 1024}}, "4b") == SIZES["4b"]
    default = Gemma3TextConfig()
    assert {name: getattr(default, name) for name in LEFT_OUT} == LEFT_OUT


def test_what_the_plan_cannot_count_is_named() -> None:
    with pytest.raises(UserError, match="hidden_size"):
        shape_of_config({k: v for k, v in tiny_config().to_dict().items() if k != "hidden_size"}, "tiny")
    with pytest.raises(UserError, match="lm_head"):
        lora_parameters(SIZES["1b"], 8, ["lm_head"])

"""What the plan says a layer keeps for backward is, to the byte, what autograd saves when the real code runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gemfleet.train.config.sections.recipe import LoraConfig
from gemfleet.train.interfaces import PackedRows
from gemfleet.train.kernels.fused.modules import use_fused
from gemfleet.train.model.gemma import TrainableModel, attach_lora
from gemfleet.train.model.vision.sight import Sight
from gemfleet.train.planning import Workload, shape_of_config
from gemfleet.train.planning.activations import (
    kept_by_layer,
    kept_outside_layers,
    masks_of_layer,
    picture_masks_of_layer,
    small_weights_of_layer,
    spared_by_frozen_input,
)
from gemfleet.train.planning.options import Dtype
from support.tiny_model import tiny_config
from transformers import Gemma3ForCausalLM

DTYPES: dict[Dtype, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}


def build(layers: int, dtype: Dtype, lora: LoraConfig = LoraConfig(r=8)) -> TrainableModel:
    base = Gemma3ForCausalLM(tiny_config(window=48, layers=layers)).to(DTYPES[dtype]).requires_grad_(False)
    return attach_lora(base, lora, seed=0, base_name="tiny")


class Blind(Sight):
    """Of pictures with four soft tokens, whose features are not put in place."""

    def __init__(self) -> None:
        self.soft_tokens = 4

    @contextmanager
    def on(self, ids: Any, places: Any) -> Iterator[None]:
        yield


def one_document(tokens: int) -> PackedRows:
    supervised = np.ones(tokens, dtype=np.bool_)
    supervised[0] = False
    return PackedRows(
        tokens=np.full(tokens, 5, dtype=np.int32),
        supervised=supervised,
        document_lengths=np.asarray([tokens], dtype=np.int32),
        row_documents=np.asarray([1], dtype=np.int32),
    )


def saved_bytes(model: TrainableModel, rows: PackedRows) -> int:
    """Bytes of all storages that autograd keeps after a forward pass, parameters left out."""
    parameters = {p.untyped_storage().data_ptr() for p in model.peft_model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.loss_sum(rows)
    return sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in parameters)


@pytest.mark.parametrize(("dtype", "fused"), [("bf16", False), ("bf16", True), ("fp32", False)])
@pytest.mark.parametrize("tokens", [40, 48, 200], ids=["short", "window", "beyond the window"])
def test_two_more_layers_keep_what_the_formula_says(dtype: Dtype, tokens: int, fused: bool) -> None:
    models = [build(layers, dtype) for layers in (4, 2)]
    if fused and not all(use_fused(model.text_model) for model in models):
        pytest.skip("needs a C++ compiler")
    more, fewer = (saved_bytes(model, one_document(tokens)) for model in models)
    difference = more - fewer
    shape = shape_of_config(tiny_config(window=48, layers=4).to_dict(), "tiny")
    work = Workload(length=tokens, lora_rank=8, dtype=dtype, fused=fused)
    of_tokens = kept_by_layer(shape, work, "cpu") * tokens
    one_of_each_kind = 2 * (of_tokens + small_weights_of_layer(shape, work)) + masks_of_layer(shape, work, "cpu")
    assert difference == one_of_each_kind


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_rows_with_pictures_keep_masks_where_sdpa_needs_them(dtype: Dtype) -> None:
    rows = replace(one_document(100), pictures=np.zeros(1, np.int64), picture_starts=np.array([9], np.int64))
    kept = []
    for layers in (4, 2):
        model = build(layers, dtype)
        model.sight = Blind()
        kept.append(saved_bytes(model, rows))
    shape = shape_of_config(tiny_config(window=48, layers=4).to_dict(), "tiny")
    work = Workload(length=100, lora_rank=8, dtype=dtype, pictures="kept")
    masks = picture_masks_of_layer(work, "cpu")
    assert (masks > 0) == (dtype == "fp32")
    of_layer = kept_by_layer(shape, work, "cpu") * 100 + small_weights_of_layer(shape, work) + masks
    assert kept[0] - kept[1] == 2 * of_layer


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_what_is_kept_outside_the_layers_is_small_and_near(dtype: Dtype) -> None:
    """The formula rounds what it counts outside the layers; it must not miss more than a hundredth of the whole."""
    tokens = 48
    shape = shape_of_config(tiny_config(window=48, layers=4).to_dict(), "tiny")
    work = Workload(length=tokens, lora_rank=8, dtype=dtype)
    layers = 4 * (kept_by_layer(shape, work, "cpu") * tokens + small_weights_of_layer(shape, work))
    outside = kept_outside_layers(shape, work) - spared_by_frozen_input(shape, work)
    whole = layers + outside * tokens
    assert whole == pytest.approx(saved_bytes(build(4, dtype), one_document(tokens)), rel=0.01)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], ["k_proj", "o_proj", "up_proj", "down_proj"]])
def test_other_adapters_keep_other_inputs(targets: Any, dropout: float) -> None:
    tokens = 40
    lora = LoraConfig(r=8, target_modules=targets, dropout=dropout)
    difference = saved_bytes(build(4, "bf16", lora), one_document(tokens)) - saved_bytes(
        build(2, "bf16", lora), one_document(tokens)
    )
    shape = shape_of_config(tiny_config(window=48, layers=4).to_dict(), "tiny")
    work = Workload(length=tokens, lora_rank=8, lora_targets=targets, lora_dropout=dropout)
    assert difference == 2 * (kept_by_layer(shape, work, "cpu") * tokens + small_weights_of_layer(shape, work))

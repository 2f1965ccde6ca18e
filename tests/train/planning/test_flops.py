"""Counted FLOPs: against torch's own counter on real steps, and against counting every visible pair."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gemfleet.benchmarks.shared.random_base import text_config
from gemfleet.train.config.sections.recipe import LoraConfig
from gemfleet.train.interfaces import PackedRows
from gemfleet.train.kernels.activation_checkpointing import checkpoint_layers
from gemfleet.train.model.gemma import TrainableModel, attach_lora
from gemfleet.train.model.resolve import read_model_config
from gemfleet.train.model.vision.tower import load_tower
from gemfleet.train.planning import SIZES, ModelShape, Workload, shape_of_config
from gemfleet.train.planning.counts import lora_parameters
from gemfleet.train.planning.flops import FlopCounter, attention_forward, visible_pairs
from gemfleet.train.planning.shapes import VisionShape
from gemfleet.train.planning.speed import lora_flops_per_token
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_multimodal import SIDE, save_tiny_multimodal
from torch.utils.flop_counter import FlopCounterMode, addmm_flop
from transformers import Gemma3ForCausalLM

TORCH_KNOWS_NOT = {torch.ops.aten.addmm_: lambda _, a, b, out_shape=None, **options: addmm_flop(None, a, b)}
PRODUCTS = ("aten.mm", "aten.addmm", "aten.addmm_", "aten.bmm")


def shape(layers: int, hidden: int, inner: int, heads: int, kv_heads: int, vocabulary: int, window: int) -> ModelShape:
    return ModelShape("small", layers, hidden, inner, heads, kv_heads, 32, window, layers - layers // 6, vocabulary)


SHAPES = {
    "wide vocabulary": (shape(7, 64, 256, 4, 1, 8192, 16), [40, 24], 0.5, 8),
    "wide layers": (shape(6, 256, 1024, 8, 4, 512, 64), [128], 1.0, 16),
    "the 270m, four layers": (replace(SIZES["270m"], layers=4, sliding_layers=4, vocabulary=4096), [96, 64], 0.25, 4),
}


def model_of(shape: ModelShape, rank: int) -> TrainableModel:
    torch.manual_seed(0)
    base = Gemma3ForCausalLM(text_config(shape)).requires_grad_(False)
    return attach_lora(base, LoraConfig(r=rank), seed=0, base_name="x")


def rows_of(shape: ModelShape, lengths: list[int], supervised: float) -> PackedRows:
    scored = np.concatenate([np.arange(n) >= max(1, round(n * (1 - supervised))) for n in lengths])
    tokens = np.random.default_rng(0).integers(3, shape.vocabulary, sum(lengths)).astype(np.int32)
    return PackedRows(tokens, scored, np.asarray(lengths, np.int32), np.asarray([len(lengths)], np.int32))


def product_flops(model: TrainableModel, rows: PackedRows) -> int:
    """What torch counts for the matrix products of one step, without those of attention."""
    with FlopCounterMode(display=False, custom_mapping=TORCH_KNOWS_NOT) as counter:
        model.loss_sum(rows).backward()
    counts: dict[Any, int] = counter.get_flop_counts()["Global"]
    return sum(flops for operator, flops in counts.items() if str(operator) in PRODUCTS)


@pytest.mark.parametrize("name", SHAPES)
def test_matrix_products_are_those_that_torch_counts(name: str) -> None:
    shape, lengths, supervised, rank = SHAPES[name]
    rows = rows_of(shape, lengths, supervised)
    counter = FlopCounter(shape, lora_parameters(shape, rank, "all-linear"))
    flops = counter.count(lengths, rows.supervised_tokens).model - 3 * attention_forward(shape, lengths)
    assert flops == pytest.approx(product_flops(model_of(shape, rank), rows), rel=0.03)


def test_full_checkpointing_recomputes_what_torch_counts_more() -> None:
    shape, lengths, supervised, rank = SHAPES["wide layers"]
    rows = rows_of(shape, lengths, supervised)
    plain, recomputing = model_of(shape, rank), model_of(shape, rank)
    checkpoint_layers(recomputing.layers, "full")
    more = product_flops(recomputing, rows) - product_flops(plain, rows)
    counted = FlopCounter(shape, lora_parameters(shape, rank, "all-linear"), "full").count(lengths, 1)
    assert counted.recomputed - attention_forward(shape, lengths) == pytest.approx(more, rel=0.03)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=4), st.integers(1, 60))
def test_attention_counts_the_pairs_that_a_mask_shows(lengths: list[int], window: int) -> None:
    """Brute force over all pairs of tokens of the row: same document, not ahead, inside the window."""
    shape = replace(SHAPES["wide layers"][0], window=window)
    document = np.repeat(np.arange(len(lengths)), lengths)
    query, key = np.indices((len(document), len(document)))
    seen = (document[query] == document[key]) & (key <= query)
    windowed = seen & (query - key < window)
    pairs = shape.sliding_layers * int(windowed.sum()) + (shape.layers - shape.sliding_layers) * int(seen.sum())
    # Two products (scores, weighted sum), two FLOPs each, for every value of every query head.
    assert attention_forward(shape, lengths) == 2 * 2 * shape.queries * pairs
    seeing = replace(shape, vision=VisionShape(soft_tokens=5))
    later = 2 * shape.layers * (5 * 4 // 2)  # of two pictures, whose tokens see the later ones too
    assert attention_forward(seeing, lengths, pictures=2) == 2 * 2 * shape.queries * (pairs + later)


def test_the_towers_flops_are_those_that_torch_counts(tmp_path: Path) -> None:
    folder = save_tiny_multimodal(tmp_path)
    shape = shape_of_config(read_model_config(folder), "tiny")
    tower = load_tower(folder, torch.float32, torch.device("cpu"))
    tower.model.set_attn_implementation("eager")  # torch counts no SDPA on a CPU
    with FlopCounterMode(display=False) as counter:
        for pixels in torch.zeros(3, 3, SIDE, SIDE, dtype=torch.uint8):
            tower(pixels)
    assert FlopCounter(shape, 0).tower(3) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_a_document_alone_sees_itself() -> None:
    assert (visible_pairs(1, None), visible_pairs(3, None), visible_pairs(4, 2)) == (1, 6, 7)


@pytest.mark.parametrize("size", SIZES)
def test_the_plan_counts_the_same_for_equal_documents(size: str) -> None:
    work = Workload(length=4096, example_tokens=2048, supervised=0.25)
    counter = FlopCounter(SIZES[size], lora_parameters(SIZES[size], work.lora_rank, work.lora_targets))
    counted = counter.count([2048, 2048], 1024).model / 4096
    assert counted == pytest.approx(lora_flops_per_token(SIZES[size], replace(work, supervised=0.25)))

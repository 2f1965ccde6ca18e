"""The same passes by compiled and by plain layers, under any strategy and over any base, on every rank of a pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gemfleet.train.interfaces import PackedRows
from gemfleet.train.kernels.capabilities import choose
from gemfleet.train.model.gemma import TrainableModel, attach_lora, prepare_layers
from gemfleet.train.strategies import build_strategy
from gemfleet.train.strategies.base import Strategy
from support.reference_step import fill_adapters
from support.strategy_cases import strategy_config

# Passes of one document and of many; some as long as the tiny model is wide (64), as a head is (16) or as it has heads
# (4), some of documents beyond the sliding window, of one token each, or of one token in all.
PASSES = ((40, 30, 5), (64,), (16,), (4,), (2, 2), (1,), (1, 1, 1), (9, 80, 3, 3, 3, 60), (33, 1), (128, 128), (2,))


def rows_of(lengths: Sequence[int], seed: int = 0) -> PackedRows:
    """A pass of these documents, about half of their tokens supervised."""
    rng, total = np.random.default_rng(seed), sum(lengths)
    supervised = rng.random(total) > 0.5
    supervised[np.cumsum(lengths) - lengths] = False
    tokens = rng.integers(3, 512, total).astype(np.int32)
    return PackedRows(tokens, supervised, np.array(lengths, np.int32), np.array([len(lengths)], np.int32))


@dataclass(frozen=True)
class Found:
    """losses: of each pass in training, then in evaluation; norms: of the gradients; graphs: compiled so far"""

    losses: list[float]
    norms: list[float]
    graphs_after_warm_up: int
    graphs: int


def run_passes(model_folder: str, changes: dict[str, Any]) -> Found:
    """Runs `PASSES`, after a warm-up; from then on a compilation is an error. Collective."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    model, strategy = _prepared(model_folder, changes)
    # In the first pass all is equal that may be: its tokens, those of its longest document and the model's width.
    _step(model, strategy, rows_of((64,)))
    _evaluate(model, strategy, rows_of((64,)))
    warm = counters["stats"]["unique_graphs"]
    with torch._dynamo.config.patch(error_on_recompile=True):
        passes = [rows_of(lengths, seed) for seed, lengths in enumerate(PASSES)]
        steps = [_step(model, strategy, rows) for rows in passes]
        evaluations = [_evaluate(model, strategy, rows) for rows in passes]
    losses, norms = [loss for loss, _ in steps] + evaluations, [norm for _, norm in steps]
    return Found(losses, norms, warm, counters["stats"]["unique_graphs"])


def _prepared(model_folder: str, changes: dict[str, Any]) -> tuple[TrainableModel, Strategy]:
    config = strategy_config(**changes)
    dtype = torch.float32 if config.precision == "fp32" else torch.bfloat16
    strategy = build_strategy(config)
    base = strategy.load_base(Path(model_folder), dtype, torch.device("cpu"))
    model = attach_lora(base, config.lora, config.seed, "tiny")
    fill_adapters(model.peft_model)
    prepare_layers(model, choose(config, model.device, dtype))
    return strategy.setup(model), strategy


def _step(model: TrainableModel, strategy: Strategy, rows: PackedRows) -> tuple[float, float]:
    """The loss and the norm of the gradients. The adapters stay as they are, as the learning rate is 0."""
    strategy.passes(1)
    loss = model.loss_sum(rows)
    strategy.backward(loss / max(1, rows.supervised_tokens))
    strategy.reduce_gradients()
    norm = strategy.clip(0.0)
    strategy.step(0.0)
    return float(loss.detach()), norm


@torch.no_grad()
def _evaluate(model: TrainableModel, strategy: Strategy, rows: PackedRows) -> float:
    model.peft_model.eval()
    strategy.passes(1)
    loss = float(model.loss_sum(rows))
    model.peft_model.train()
    return loss

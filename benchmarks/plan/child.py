"""`python -m ....plan.child CASE THREADS`: train two steps in this fresh process and print its memory as JSON.

The baseline is the resident set once everything is imported; the peak is the kernel's own high-water mark since then.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch
from gemfleet.train.activation_checkpointing import checkpoint_layers
from gemfleet.train.batch_finder.memory import forget_resident_peak, peak_resident_bytes, resident_bytes
from gemfleet.train.batch_finder.probe import worst_rows
from gemfleet.train.config import LoraConfig, OptimConfig
from gemfleet.train.device import prepare_process
from gemfleet.train.interfaces import PackedRows
from gemfleet.train.model import TrainableModel, attach_lora
from gemfleet.train.planning import ModelShape
from gemfleet.train.strategies.ddp import DdpStrategy

from .cases import CASES, Case

STEPS = 2
CPU = torch.device("cpu")


def main() -> None:
    """Measure the case named on the command line."""
    name, threads = sys.argv[1:]
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever libraries print is no event
    prepare_process(ranks_on_node=1)
    torch.set_num_threads(int(threads))
    import peft  # noqa: F401
    import transformers  # noqa: F401

    print(json.dumps(measure(CASES[name])), file=events, flush=True)


def measure(case: Case) -> dict[str, int]:
    """Bytes: the baseline, and the peak beyond it over two optimizer steps."""
    forget_resident_peak()  # that of importing
    baseline = resident_bytes()
    model = random_model(case.shape(), torch.bfloat16 if case.dtype == "bf16" else torch.float32)
    checkpoint_layers(model.layers, case.checkpointing)
    train(model, worst_rows(case.micro, case.length, case.shape().vocabulary))
    return {"baseline_bytes": baseline, "peak_bytes": peak_resident_bytes() - baseline}


def train(model: TrainableModel, rows: PackedRows) -> None:
    """Steps as the loop takes them, of one pass each."""
    strategy = DdpStrategy(OptimConfig())
    model = strategy.setup(model)
    for _ in range(STEPS):
        loss = model.loss_sum(rows)
        strategy.backward(loss / rows.supervised_tokens)
        strategy.reduce_gradients()
        strategy.clip(1.0)
        strategy.step(1e-4)


def random_model(shape: ModelShape, dtype: torch.dtype, device: torch.device = CPU) -> TrainableModel:
    """Random weights with adapters."""
    return attach_lora(random_base(shape, dtype, device), LoraConfig(), seed=0, base_name="random")


def random_base(shape: ModelShape, dtype: torch.dtype, device: torch.device = CPU) -> Any:
    """A frozen Gemma 3, made in place, so that no second copy of the weights is ever held."""
    from transformers import Gemma3ForCausalLM
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding

    torch.manual_seed(0)
    with torch.device("meta"):
        base: Any = Gemma3ForCausalLM(text_config(shape)).to(dtype)
    base.to_empty(device=device)
    base.tie_weights()
    for parameter in base.parameters():
        parameter.data.uniform_(-0.02, 0.02)
    # Buffers that no file holds; they are garbage after `to_empty`.
    base.model.rotary_emb = Gemma3RotaryEmbedding(base.config).to(device)
    base.model.embed_tokens.embed_scale.fill_(shape.hidden**0.5)
    return base.requires_grad_(False)


def text_config(shape: ModelShape) -> Any:
    """transformers' configuration of a shape."""
    from transformers import Gemma3TextConfig

    return Gemma3TextConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        sliding_window=shape.window,
    )


if __name__ == "__main__":
    main()

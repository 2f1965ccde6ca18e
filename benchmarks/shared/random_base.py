"""Base models of random weights in any shape: in memory, or as a folder of safetensors that ranks load from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from gemfleet.train.config.sections.recipe import LoraConfig
from gemfleet.train.model.gemma import TrainableModel, attach_lora
from gemfleet.train.model.lean import placeholder_model
from gemfleet.train.planning import ModelShape

CPU = torch.device("cpu")
BLOCK = 1 << 20  # so many random values, repeated: drawing all of a 1B takes longer than training on it


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


def save_random_base(shape: ModelShape, dtype: torch.dtype, folder: Path) -> dict[str, int]:
    """Write config.json and model.safetensors; returns the bytes of each weight by its name."""
    from safetensors.torch import save_file

    text_config(shape).save_pretrained(folder)
    block = torch.empty(BLOCK).uniform_(-0.02, 0.02, generator=torch.Generator().manual_seed(0)).to(dtype)
    weights = {
        name: block.repeat(-(-p.numel() // BLOCK))[: p.numel()].view(p.shape).clone()
        for name, p in placeholder_model(folder, dtype).named_parameters()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return {name: weight.nbytes for name, weight in weights.items()}


def text_config(shape: ModelShape) -> Any:
    """transformers' configuration of a shape."""
    from transformers import Gemma3TextConfig

    heads = {"num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim}
    sizes = {"vocab_size": shape.vocabulary, "hidden_size": shape.hidden, "intermediate_size": shape.inner}
    layers = {"num_hidden_layers": shape.layers, "sliding_window": shape.window}
    return Gemma3TextConfig(**sizes, **heads, **layers, architectures=["Gemma3ForCausalLM"])

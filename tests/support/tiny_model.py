"""A tiny random Gemma 3 with every mechanism of the real one: sliding and global layers, grouped queries, tied head."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

WINDOW = 8


def tiny_config(vocab_size: int = 512, window: int = WINDOW, layers: int = 4) -> Gemma3TextConfig:
    return Gemma3TextConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=window,
        layer_types=["sliding_attention", "full_attention"] * (layers // 2),
        max_position_embeddings=4096,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )


def tiny_gemma3(seed: int = 0, **options: int) -> Gemma3ForCausalLM:
    torch.manual_seed(seed)
    return Gemma3ForCausalLM(tiny_config(**options)).eval()


def save_tiny_gemma3(folder: Path, seed: int = 0, **options: int) -> Path:
    tiny_gemma3(seed, **options).save_pretrained(folder)
    return folder

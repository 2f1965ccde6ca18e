"""A tiny random multimodal Gemma 3: the text model of `tiny_model` below a vision tower of two layers."""

from __future__ import annotations

from pathlib import Path

import torch
from support.tiny_model import tiny_config
from transformers import Gemma3Config, Gemma3ForConditionalGeneration


def tiny_multimodal(seed: int = 0) -> Gemma3ForConditionalGeneration:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "vision_use_head": False,
    }
    config = Gemma3Config(
        text_config=tiny_config().to_dict(),
        vision_config=vision,
        mm_tokens_per_image=4,
        boi_token_index=7,
        eoi_token_index=8,
        image_token_index=9,
    )
    torch.manual_seed(seed)
    model = Gemma3ForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)  # transformers makes it zero
    return model


def save_tiny_multimodal(folder: Path, seed: int = 0) -> Path:
    tiny_multimodal(seed).save_pretrained(folder)
    return folder

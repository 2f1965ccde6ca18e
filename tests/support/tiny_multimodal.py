"""A tiny random multimodal Gemma 3: the text model of `tiny_model` below a vision tower of two layers."""

from __future__ import annotations

from pathlib import Path

import torch
from gemfleet.train.data.templates.gemma import CHAT_TEMPLATE
from support.tiny_model import tiny_config
from support.tiny_tokenizer import tiny_tokenizer
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

SIDE, TOKENS = 32, 4  # pixels, and tokens of a picture


def tiny_multimodal(seed: int = 0) -> Gemma3ForConditionalGeneration:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 8,
        "vision_use_head": False,
    }
    config = Gemma3Config(
        text_config=tiny_config().to_dict(),
        vision_config=vision,
        mm_tokens_per_image=TOKENS,
        boi_token_index=7,
        eoi_token_index=8,
        image_token_index=9,
    )
    torch.manual_seed(seed)
    model = Gemma3ForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)  # transformers makes it zero
    return model


def save_tiny_processor(folder: Path) -> Gemma3Processor:
    """Save transformers' own processor for it, with a tokenizer, and return it."""
    pictures = Gemma3ImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_pan_and_scan=False
    )
    processor = Gemma3Processor(pictures, tiny_tokenizer(folder, sees=True), CHAT_TEMPLATE, image_seq_length=TOKENS)
    processor.save_pretrained(folder)
    return processor


def save_tiny_multimodal(folder: Path, seed: int = 0) -> Path:
    tiny_multimodal(seed).save_pretrained(folder)
    return folder

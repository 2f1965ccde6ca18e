"""Bases of the real sizes whose weights are holes in a file: on the disk they take nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from gemfleet.benchmarks.shared.random_base import text_config
from gemfleet.train.model.lean import placeholder_model
from gemfleet.train.planning import ModelShape

BF16_BYTES = 2


def save_sparse_base(shape: ModelShape, folder: Path) -> Path:
    """config.json and model.safetensors (all zeros, bf16) of a shape."""
    text_config(shape).save_pretrained(folder)
    header: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, weight in placeholder_model(folder, torch.bfloat16).named_parameters():
        start, end = end, end + BF16_BYTES * math.prod(weight.shape)
        header[name] = {"dtype": "BF16", "shape": list(weight.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(file.tell() + end)
    return folder

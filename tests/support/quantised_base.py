"""What a quantised base stores, by module and field: loaded whole, and divided and gathered again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from gemfleet.train.kernels.packed_layers import PARAMETER
from gemfleet.train.kernels.quantization import is_quantised
from gemfleet.train.model.gemma import attach_lora, load_base_model
from gemfleet.train.strategies import build_strategy
from numpy.typing import NDArray
from support.strategy_cases import strategy_config

Stored = dict[str, NDArray[np.generic]]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CPU = torch.device("cpu")


def stored_base(model_folder: str, bits: Any, dtype: str) -> Stored:
    """The base as one process loads it."""
    found: dict[str, torch.Tensor] = {}
    for path, layer in load_base_model(Path(model_folder), DTYPES[dtype], CPU, bits).named_modules():
        if not is_quantised(layer):
            continue
        weight = layer.weight
        found[f"{path} codes"] = weight.data
        if hasattr(weight, "quant_state"):
            state = weight.quant_state
            found[f"{path} absmax"], found[f"{path} offset"] = state.absmax, state.offset
            found[f"{path} nested"] = state.state2.absmax
        else:
            found[f"{path} largest"] = weight.SCB
    return {name: tensor.numpy() for name, tensor in found.items()}


def gathered_base(model_folder: str, bits: str, dtype: str) -> Stored:
    """The base that ranks quantise by shares, put together again. Collective."""
    config = strategy_config(strategy="fsdp2", quantization=bits)
    strategy: Any = build_strategy(config)
    base = strategy.load_base(Path(model_folder), DTYPES[dtype], CPU)
    model = strategy.setup(attach_lora(base, config.lora, config.seed, "tiny"))
    found: Stored = {}
    for index, (layer, packed) in enumerate(zip(model.layers, strategy._packed, strict=True)):
        whole = getattr(layer, PARAMETER).full_tensor().detach()
        for weight in packed.weights:
            path = f"model.layers.{index}.{weight.path.removesuffix('.base_layer')}"
            found |= {f"{path} {name}": field.view(whole).numpy() for name, field in weight.fields.items()}
    return found

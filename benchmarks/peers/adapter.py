"""One initial adapter for all contenders: lora_A drawn once from a seed and kept in a file, lora_B zero.

Every library draws lora_A in its own order, so the same seed alone would not make their losses comparable.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from .task import Recipe

_PEFT_PREFIX = "base_model.model."


def write_initial_adapter(model_folder: Path, recipe: Recipe, destination: Path) -> None:
    """Draw lora_A [r, in_features] fp32 for every target module, uniform in ±1/√in_features as peft does, and save it.

    Only the model's shapes are needed: it is built on the meta device, without weights.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_folder))
    generator = torch.Generator().manual_seed(recipe.seed)
    tensors = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] in recipe.target_modules:
            uniform = torch.rand(recipe.lora_r, module.in_features, generator=generator)
            tensors[name] = (2 * uniform - 1) / math.sqrt(module.in_features)
    save_file(tensors, destination)


def load_initial_adapter(model: Any, adapter_file: Path) -> None:
    """Copy lora_A from the file into a peft model and clear lora_B.

    Raises RuntimeError if the model's adapters are not exactly those of the file.
    """
    import torch
    from safetensors.torch import load_file

    left = load_file(adapter_file)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_A." in name:
                module = name.removeprefix(_PEFT_PREFIX).partition(".lora_A.")[0]
                if module not in left:
                    raise RuntimeError(f"the adapter on {module} is not in {adapter_file.name}")
                parameter.copy_(left.pop(module))
            elif ".lora_B." in name:
                parameter.zero_()
    if left:
        raise RuntimeError(f"the model has no adapter on {', '.join(sorted(left))}")


def lora_config(recipe: Recipe) -> Any:
    """The recipe as peft's configuration."""
    from peft import LoraConfig

    return LoraConfig(
        r=recipe.lora_r,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=0.0,
        target_modules=list(recipe.target_modules),
        task_type="CAUSAL_LM",
    )

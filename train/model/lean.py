"""Loads a base model without holding all of it: a model of placeholders, and tensors that are read in slices.

A strategy that shards attaches adapters to the placeholders, shards them, and then reads only its own slices.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .base_check import find_stored, gemma_config
from .multimodal import base_model_class
from .weight_files import stored_tensors


def placeholder_model(folder: Path, dtype: torch.dtype) -> Any:
    """The base model of a checked folder, frozen, with real buffers, and with weights that take no memory.

    No file has the buffers, such as the rotary frequencies, so they are computed here. A placeholder is one zero with
    a stride of 0. Its device is the CPU, not meta, so peft makes real adapters there.
    """
    from accelerate import init_empty_weights

    config = gemma_config(folder)
    with init_empty_weights(include_buffers=False):
        model = base_model_class(config)._from_config(config, dtype=dtype)
    replace_parameters(model, lambda p: torch.zeros((), dtype=p.dtype).expand(p.shape) if p.is_meta else None)
    model.tie_weights()  # the replacement of each weight has separated the head from the embedding
    return model.requires_grad_(False)


def placeholders_to_meta(model: nn.Module) -> None:
    """Turns the placeholders of `model` into meta tensors, which mean "not loaded yet" to sharding."""
    replace_parameters(
        model, lambda p: torch.empty(p.shape, dtype=p.dtype, device="meta") if is_placeholder(p) else None
    )


def is_placeholder(tensor: Tensor) -> bool:
    return tensor.numel() > 1 and not any(tensor.stride())


def replace_parameters(model: nn.Module, choose: Callable[[Tensor], Tensor | None]) -> None:
    """Replaces each parameter for which `choose` returns a tensor. Tied parameters stay tied."""
    replaced: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) not in replaced:
                tensor = choose(parameter)
                if tensor is None:
                    continue
                replaced[id(parameter)] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
            module._parameters[name] = replaced[id(parameter)]


class WeightFiles:
    """The tensors of a checkpoint's safetensors files by parameter name. A read takes a range of rows.

    Each read maps the file into memory and closes it. So the ranks of a node share one copy in the page cache, and no
    rank keeps pages that it has copied.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stored = stored_tensors(folder)

    def rows(self, name: str, start: int, end: int) -> Tensor:
        """Rows start..end of the base model's parameter `name`, on the CPU, in the file's dtype."""
        from safetensors import safe_open

        stored = find_stored(self._stored, name)
        if stored is None:
            raise UserError(f"the model folder {self._folder} has no weight {name!r}; fetch the model folder again")
        with safe_open(stored.file, framework="pt") as file:
            rows: Tensor = file.get_slice(stored.name)[start:end]
            return rows.clone()

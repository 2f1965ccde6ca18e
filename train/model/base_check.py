"""Compares a base model with its files before it is loaded: each weight is there, in its shape, as plain numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..collector import uncollected
from ..errors import UserError, first_line
from .multimodal import base_model_class
from .resolve import read_model_config
from .weight_files import FLOATS, StoredTensor, entry_file, refuse_pointer, stored_tensors

# Keys of a config.json that make transformers fetch, run or read something else than the folder's files.
IGNORED_KEYS = (
    *("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "attn_implementation_internal"),
    *("experts_implementation", "_experts_implementation", "_experts_implementation_internal"),
    *("use_kernels", "kernel_config", "fusion_config", "distributed_config", "auto_map", "transformers_weights"),
)
NAMED = 3  # a sentence names so many weights and counts the rest


def gemma_config(folder: Path) -> Any:
    """transformers' configuration of a model folder, without the `IGNORED_KEYS` of config.json.

    Raises UserError if config.json describes no Gemma 3.
    """
    from transformers import Gemma3Config, Gemma3TextConfig

    content = read_model_config(folder)
    kind = Gemma3Config if content.get("model_type") == "gemma3" else Gemma3TextConfig
    try:
        config = kind.from_dict(_without(content))
        config._attn_implementation = "sdpa"
    except Exception as error:  # the library raises many kinds for a wrong value
        raise UserError(
            f"the config.json of {folder} does not describe a Gemma 3 ({first_line(error)}); fetch the folder again"
        ) from error
    config.transformers_weights, config.name_or_path = entry_file(folder), str(folder)
    return config


def _without(section: dict[str, Any]) -> dict[str, Any]:
    """A section of config.json without the `IGNORED_KEYS`, also in the sections below it."""
    return {
        key: _without(value) if isinstance(value, dict) else value
        for key, value in section.items()
        if key not in IGNORED_KEYS
    }


def empty_model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The base model of a folder, with weights and buffers on the meta device."""
    config = gemma_config(folder)
    try:
        with torch.device("meta"):
            return base_model_class(config)._from_config(config, dtype=dtype)
    except Exception as error:
        raise UserError(
            f"the config.json of {folder} describes a Gemma 3 that cannot be built ({first_line(error)}); "
            "fetch the folder again"
        ) from error


def check_base(folder: Path) -> Any:
    """The empty model of a folder. Raises UserError unless the files hold each of its weights in its shape."""
    stored = stored_tensors(folder)
    model = empty_model(folder)
    missing, wrong = [], []
    for name, parameter in model.named_parameters():
        tensor = find_stored(stored, name)
        if tensor is None:
            missing.append(name)
        elif tensor.dtype not in FLOATS:
            raise UserError(f"{_is(folder, name)} of {tensor.dtype} numbers: {QUANTISED}")
        elif tensor.shape != tuple(parameter.shape):
            wrong.append(f"{name} ({_by(tensor.shape)} where config.json says {_by(parameter.shape)})")
    for names, what in ((missing, "lack"), (wrong, "have in another shape")):
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            raise UserError(
                f"the weights of the model folder {folder} {what} {', '.join(names[:NAMED])}{more}; "
                "fetch the folder again, or the config.json that belongs to the weights"
            )
    return model


QUANTISED = (
    "the model is quantised already; give the base in 16 or 32 bits, and set train.quantization to hold it in fewer"
)


def find_stored(stored: dict[str, StoredTensor], name: str) -> StoredTensor | None:
    """The stored tensor of a parameter. It may have the older name that published multimodal checkpoints use."""
    older = name.replace("model.language_model.", "language_model.model.", 1)
    return stored.get(name) or stored.get(older) or stored.get(f"language_model.{name}")


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder. Raises UserError if no installed package can read its files."""
    from transformers import AutoTokenizer

    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            refuse_pointer(folder / name)
    try:
        with uncollected():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the library raises many kinds for a damaged file or a missing package
        raise UserError(
            f"the tokenizer of the model folder {folder} cannot be loaded ({first_line(error)}); "
            "save it beside the model as tokenizer.json with tokenizer_config.json"
        ) from error


def _is(folder: Path, name: str) -> str:
    return f"in the model folder {folder} the weight {name} is"


def _by(shape: tuple[int, ...] | torch.Size) -> str:
    return " x ".join(map(str, shape))

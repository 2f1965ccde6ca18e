"""Adds a LoRA adapter to the base model's weights and writes the sum as sharded safetensors.

W' = W + (alpha / r) * B A, computed in fp32 and rounded once to the base's dtype. Only one shard is in memory at a
time, so the model need not fit. No model is built.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..config.home import open_as_umask_says
from ..errors import UserError
from .weight_files import INDEX_FILE, StoredTensor, stored_tensors

__all__ = ["INDEX_FILE", "merge_adapter"]

SHARD_BYTES = 2**30
COPIED = ("config.json", "generation_config.json")
Progress = Callable[[int, int], None]


def merge_adapter(
    model_folder: Path,
    adapter_folder: Path,
    output: Path,
    progress: Progress | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Writes the merged model, without a tokenizer, into the folder `output`, which it makes.

    Returns the number of merged weights. Raises UserError if a part of the adapter fits no weight of the base, or is
    of a kind that cannot be merged.
    """
    updates, replaced = _read_adapter(adapter_folder)
    shards = _plan(list(stored_tensors(model_folder).values()), shard_bytes)
    output.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        if (model_folder / name).is_file():
            shutil.copyfile(model_folder / name, output / name)
    index: dict[str, str] = {}
    merged = 0
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {}
        for stored in shard:
            update = updates.pop(_site(stored.name.removesuffix(".weight")), None)
            merged += update is not None
            whole = replaced.pop(_site(stored.name), None)
            merged += whole is not None
            tensors[stored.name] = _merged(stored, update) if whole is None else _like(stored, whole)
            index[stored.name] = file
        save_file(tensors, output / file, metadata={"format": "pt"})
        open_as_umask_says(output / file)
        if progress is not None:
            progress(number, len(shards))
    if lost := sorted([*updates, *replaced]):
        raise UserError(f"the adapter has weights for {lost[0]!r}, which the model in {model_folder} lacks")
    total = sum(stored.nbytes for shard in shards for stored in shard)
    content = {"metadata": {"total_size": total}, "weight_map": index}
    (output / INDEX_FILE).write_text(json.dumps(content, indent=2) + "\n")
    return merged


def _read_adapter(folder: Path) -> tuple[dict[str, tuple[Tensor, Tensor, float]], dict[str, Tensor]]:
    """By their `_site`: (A [r, in], B [out, r], scaling) of each projection, and weights that were trained whole."""
    config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    unlike = [name for name in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern") if config.get(name)]
    if unlike or config["bias"] != "none":
        raise UserError(f"the adapter in {folder} uses {', '.join(unlike) or 'biases'}, which cannot be merged here")
    scaling = config["lora_alpha"] / config["r"]
    tensors = load_file(folder / "adapter_model.safetensors")
    updates = {}
    for name in [name for name in tensors if name.endswith(".lora_A.weight")]:
        stem = name.removesuffix(".lora_A.weight")
        site = _site(stem.removeprefix("base_model."))
        if site in ("lm_head", "embed_tokens"):
            raise UserError(
                "an adapter of lm_head cannot be merged: its weight is tied to the embedding, which would change too; "
                "leave lm_head out of train.lora.target_modules"
            )
        updates[site] = (tensors[name], tensors[f"{stem}.lora_B.weight"], scaling)
    return updates, {_site(name.removeprefix("base_model.")): t for name, t in tensors.items() if ".lora_" not in name}


def _like(stored: StoredTensor, whole: Tensor) -> Tensor:
    """A weight that takes the place of a stored one, in its dtype."""
    with safe_open(stored.file, framework="pt") as handle:
        return whole.to(handle.get_slice(stored.name)[:1].dtype)


def _site(name: str) -> str:
    """A module's place, without the prefixes by which text-only and multimodal checkpoints differ."""
    return ".".join(part for part in name.split(".") if part not in ("model", "language_model"))


def _plan(tensors: list[StoredTensor], shard_bytes: int) -> list[list[StoredTensor]]:
    """Consecutive tensors in shards of at most `shard_bytes`. A tensor that is larger has a shard of its own."""
    shards: list[list[StoredTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def _merged(stored: StoredTensor, update: tuple[Tensor, Tensor, float] | None) -> Tensor:
    with safe_open(stored.file, framework="pt") as handle:
        weight: Tensor = handle.get_tensor(stored.name)
    if update is None:
        return weight
    a, b, scaling = update
    if (b.shape[0], a.shape[1]) != tuple(weight.shape):
        raise UserError(
            f"the adapter's update of {stored.name} is {b.shape[0]} x {a.shape[1]}, its weight is "
            f"{' x '.join(map(str, weight.shape))}; merge with the base it was trained on"
        )
    return (weight.float() + scaling * (b.float() @ a.float())).to(weight.dtype)

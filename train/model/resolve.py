"""Finds the model that a person names: a checked folder of safetensors on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..config.paths import local_path
from ..errors import UserError
from .weight_files import refuse_pointer, stored_tensors

SUPPORTED = {"gemma3": "Gemma3ForConditionalGeneration", "gemma3_text": "Gemma3ForCausalLM"}
SECTIONS = ("text_config", "vision_config")
HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja"]


def resolve_model_folder(model: str) -> Path:
    """The folder of `demo`, of a local path, or of a Hugging Face id. The first call downloads or converts.

    Raises UserError with the remedy.
    """
    if model == "demo":
        from ..data.demo import demo_model_folder

        return check_model_folder(demo_model_folder())
    return check_model_folder(local_path(model) or _download(model))


def read_model_config(folder: Path) -> dict[str, Any]:
    """The content of the folder's config.json. Raises UserError, which says what is wrong with it."""
    path = folder / "config.json"
    if not folder.is_dir():
        raise UserError(
            f"train.model is {str(folder)!r}, which is not a folder; give a model folder or a Hugging Face id"
        )
    if not path.is_file():
        raise UserError(f"the model folder {folder} has no config.json; it must be what `save_pretrained` writes")
    refuse_pointer(path)
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); fetch the model folder again") from error
    sections = [content, *(content.get(key, {}) for key in SECTIONS)] if isinstance(content, dict) else [content]
    if not all(isinstance(section, dict) for section in sections):
        raise UserError(f"{path} does not hold the settings of a model; fetch the model folder again")
    return dict(content)


def check_model_folder(folder: Path) -> Path:
    """The resolved path of a folder. Raises UserError unless it holds a Gemma 3 in safetensors and its tokenizer."""
    kind = read_model_config(folder).get("model_type")
    if kind not in SUPPORTED:
        raise UserError(
            f"the model in {folder} is of type {kind!r}; "
            f"gemfleet trains Gemma 3 only (model_type {' or '.join(SUPPORTED)})"
        )
    _refuse_quantised(folder)
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"the model folder {folder} has an adapter_config.json, so loading the base would load that adapter, "
            "too; take the adapter out of the folder, or merge it first"
        )
    stored_tensors(folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise UserError(
            f"the model folder {folder} has no tokenizer.json or tokenizer.model; save the tokenizer beside it"
        )
    return folder.resolve()


def _refuse_quantised(folder: Path) -> None:
    """Raises UserError if other software has quantised the base: no adapter can be trained beside its bytes."""
    config = read_model_config(folder)
    for section in (config, *(config.get(key, {}) for key in SECTIONS)):
        settings = section.get("quantization_config") or section.get("compression_config")
        if settings:
            method = settings.get("quant_method") if isinstance(settings, dict) else None
            raise UserError(
                f"the model in {folder} is quantised already ({method or 'as its config.json says'}); give the base in "
                "16 or 32 bits, and set train.quantization to hold it in fewer"
            )


def model_context(folder: Path) -> int | None:
    """The longest sequence in tokens that a folder's model is made for; None if its config does not say."""
    config = read_model_config(folder)
    length = config.get("text_config", config).get("max_position_embeddings")
    return length if isinstance(length, int) else None


def embedding_rows(folder: Path) -> int | None:
    """The number of tokens that a folder's model has an embedding for; None if its config does not say."""
    config = read_model_config(folder) if (folder / "config.json").is_file() else {}
    rows = config.get("text_config", config).get("vocab_size")
    return rows if isinstance(rows, int) else None


def check_context(folder: Path, max_length: int) -> None:
    """Raises UserError if rows would be longer than the model's context."""
    context = model_context(folder)
    if context is not None and max_length > context:
        raise UserError(
            f"train.data.max_length is {max_length}, but the model in {folder} was made for {context} tokens; lower it"
        )


def _download(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(model, allow_patterns=HUB_FILES))
    except GatedRepoError as error:
        raise UserError(
            f"train.model {model!r} is gated; accept its terms on Hugging Face and set HF_TOKEN for every node"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(f"train.model {model!r} is neither a folder here nor a Hugging Face id that exists") from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"train.model {model!r} is not a folder here, and Hugging Face cannot be reached; "
            "check the path, or the network of the head node"
        ) from error

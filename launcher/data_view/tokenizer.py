"""Loads a model's tokenizer quickly: without its weights, and without torch where the tokenizer is Gemma's own."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from gemfleet.train.collector import uncollected
from gemfleet.train.config.home import gemfleet_home
from gemfleet.train.config.paths import local_path
from gemfleet.train.data.demo import MODEL_FOLDER
from gemfleet.train.errors import UserError, first_line

TOKENIZER_FILES = ["*.json", "tokenizer.model", "*.jinja"]
GEMMA_CLASSES = ("GemmaTokenizer", "GemmaTokenizerFast")
# What transformers' GemmaTokenizer puts around the vocabulary, whatever tokenizer.json says. Where that says the same,
# the general class, which does not parse the file in Python, makes the same ids.
PARTS = {
    "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    "pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
    "decoder": {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ],
    },
}
MODEL = {"dropout": None, "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "ignore_merges": False}
OLDER_FILES = ("special_tokens_map.json", "added_tokens.json")
NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


def model_here(model: str) -> Path | None:
    """The folder of `train.model`, which need not exist for a path.

    None for a hub's model that this machine has not fetched, and for a `demo` that is not converted yet.
    """
    from gemfleet.train.model.hub_lookup import cached_model

    if model == "demo":
        demo = gemfleet_home() / "cache" / "models" / MODEL_FOLDER
        return demo if demo.is_dir() else None
    return local_path(model) or cached_model(model)


def tokenizer_folder(model: str) -> Path:
    """A folder with the tokenizer of `train.model`. Of a hub's model, only the tokenizer's files are fetched.

    Raises UserError if there is none.
    """
    from gemfleet.train.model.hub_lookup import look_up_model
    from gemfleet.train.model.resolve import check_model_folder, resolve_model_folder

    if (folder := model_here(model)) is not None:
        return check_model_folder(folder)
    if model == "demo":
        return resolve_model_folder(model)
    from huggingface_hub import snapshot_download

    cache = gemfleet_home() / "cache" / "tokenizers"  # a run would take a folder without weights for the whole model
    try:
        return Path(snapshot_download(model, allow_patterns=TOKENIZER_FILES, cache_dir=cache))
    except Exception as error:  # a network causes many kinds in the libraries below
        look_up_model(model)
        raise UserError(f"the tokenizer of {model} cannot be fetched ({first_line(error)}); try again") from error


def quick_tokenizer(folder: Path) -> Any:
    """As `load_tokenizer`: the same ids, in two thirds of the time for Gemma's own tokenizer. Raises UserError.

    Whoever asks again in this process gets the same object, unless the folder's files have changed: do not change it.
    """
    files = sorted(path for pattern in TOKENIZER_FILES for path in folder.glob(pattern))
    return _loaded(folder, tuple((path.name, path.stat().st_mtime_ns) for path in files))


@lru_cache(maxsize=1)
def _loaded(folder: Path, stamps: tuple[tuple[str, int], ...]) -> Any:
    """stamps: of the folder's files, by which an older version of them is not taken for this one"""
    with suppress(Exception), uncollected():  # of a damaged file the other way says what is wrong
        if (quick := _quick(folder)) is not None:
            return quick
    from gemfleet.train.model.base_check import load_tokenizer

    return load_tokenizer(folder)


def _quick(folder: Path) -> Any | None:
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    if config.get("tokenizer_class") not in GEMMA_CLASSES or not all(config.get(name) for name in NAMED_TOKENS):
        return None
    from transformers import PreTrainedTokenizerFast

    told = "added_tokens_decoder" in config or any((folder / name).is_file() for name in OLDER_FILES)
    added = {} if told else {"added_tokens_decoder": _added_tokens((folder / "tokenizer.json").read_text("utf-8"))}
    found = PreTrainedTokenizerFast.from_pretrained(folder, **added)
    backend = found.backend_tokenizer
    parts = {name: json.loads(getattr(backend, name).__getstate__()) for name in PARTS}
    model = {name: getattr(backend.model, name, None) for name in MODEL}
    return found if (parts, model) == (PARTS, MODEL) else None


def _added_tokens(text: str) -> dict[str, dict[str, Any]]:
    """The added tokens of a tokenizer.json by id, as transformers would take them from all of it in a second more."""
    key = '"added_tokens":'
    rest = text.index(key) + len(key)
    rest += len(text[rest : rest + 99]) - len(text[rest : rest + 99].lstrip())
    tokens: list[dict[str, Any]] = json.JSONDecoder().raw_decode(text, rest)[0]
    return {str(token.pop("id")): token for token in tokens}

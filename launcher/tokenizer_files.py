"""The tokenizer beside a published model, with `special_tokens_map.json`, which transformers 5 no longer writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
SPECIAL_NAMES = (
    *("boi_token", "bos_token", "cls_token", "eoi_token", "eos_token"),
    *("image_token", "mask_token", "pad_token", "sep_token", "unk_token"),
)
FLAGS = ("lstrip", "normalized", "rstrip", "single_word")


def copy_tokenizer(source: Path, target: Path, padding_side: str | None = None) -> None:
    """Copy what is there, set the padding side if asked to, and write the map of special tokens where there is none."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    path = target / "tokenizer_config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if padding_side is not None:
        config["padding_side"] = padding_side
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    special = target / "special_tokens_map.json"
    if not special.is_file():
        tokens = special_tokens(config, _added_tokens(target / "tokenizer.json"))
        special.write_text(json.dumps(tokens, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def special_tokens(config: dict[str, Any], added: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Each special token by its role, with its flags where the tokenizer records them."""
    tokens: dict[str, Any] = {}
    for name in SPECIAL_NAMES:
        value = config.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            entry = added.get(content)
            tokens[name] = {"content": content, **{flag: entry[flag] for flag in FLAGS}} if entry else content
    return tokens


def _added_tokens(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    return {token["content"]: token for token in json.loads(path.read_text(encoding="utf-8"))["added_tokens"]}

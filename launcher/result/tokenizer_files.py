"""Copies what a published model needs to be used: tokenizer, chat template, ends of an answer, processor.

Writes `special_tokens_map.json` itself, because transformers 5 no longer does.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from gemfleet.train.data.templates.gemma import CHAT_TEMPLATE, TURN_END
from gemfleet.train.data.templates.rendered import answer_end, template_with_bos
from gemfleet.train.model.base_check import load_tokenizer

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
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "chat_template.json")
GENERATION_FILE = "generation_config.json"
TEMPLATE_FILE = "chat_template.jinja"
FLAGS = ("lstrip", "normalized", "rstrip", "single_word")


def copy_companions(source: Path, target: Path, padding_side: str | None = None, template: str = "") -> None:
    """Write the tokenizer, the chat template and `generation_config.json`.

    template: `train.data.chat_template` of a run on chats, whose result has it. Gemma's own is written if the base has
    none. Empty: the data are no chats, so the base's template stays.
    """
    copy_tokenizer(source, target, padding_side)
    written, end = _template_and_end(source, template)
    if written:
        (target / TEMPLATE_FILE).write_text(written, encoding="utf-8")
    content = generation_config(source, end)
    (target / GENERATION_FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _template_and_end(source: Path, template: str) -> tuple[str, str]:
    """The chat template to write, empty if the base's own stays, and the end of its answers where it is not Gemma's."""
    if template in ("", "gemma"):
        return (CHAT_TEMPLATE if template and not has_template(source) else ""), ""
    tokenizer = load_tokenizer(source)
    return template_with_bos(tokenizer, template), answer_end(tokenizer, template)


def copy_processor(source: Path, target: Path) -> None:
    """Copy the files that transformers needs to prepare images for a multimodal model."""
    for name in PROCESSOR_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def has_template(folder: Path) -> bool:
    """Whether the tokenizer of a folder has a chat template, in any of its files."""
    files = (TEMPLATE_FILE, "chat_template.json")
    return any((folder / name).is_file() for name in files) or bool(
        _read(folder / "tokenizer_config.json").get("chat_template")
    )


def generation_config(folder: Path, end: str = "") -> dict[str, Any]:
    """The base's generation settings, with all tokens that may end an answer in `eos_token_id`.

    These are the ends that the base names, the tokenizer's `eos_token`, and `<end_of_turn>` and `end` if each is one
    token.
    """
    model = _read(folder / "config.json")
    content = {**_token_ids(model.get("text_config", {})), **_token_ids(model), **_read(folder / GENERATION_FILE)}
    ends = _listed(content.get("eos_token_id"))
    ids = _token_numbers(folder)
    for token in (_text(_read(folder / "tokenizer_config.json").get("eos_token")), TURN_END, end):
        if token in ids and ids[token] not in ends:
            ends.append(ids[token])
    content.pop("_from_model_config", None)  # with it, transformers would use only the model's own ends
    return {**content, **({"eos_token_id": ends} if ends else {})}


def _token_ids(config: dict[str, Any]) -> dict[str, Any]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: config[name] for name in names if config.get(name) is not None}


def _listed(ids: Any) -> list[int]:
    return list(ids) if isinstance(ids, list) else [] if ids is None else [ids]


def _token_numbers(folder: Path) -> dict[str, int]:
    """The id of each added token. All control tokens are among them."""
    recorded = _read(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
    numbers = {entry["content"]: int(number) for number, entry in recorded.items()}
    return numbers | {content: token["id"] for content, token in _added_tokens(folder / "tokenizer.json").items()}


def _read(path: Path) -> dict[str, Any]:
    """The content of a JSON file, empty if there is no such file."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content


def _text(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def copy_tokenizer(source: Path, target: Path, padding_side: str | None = None) -> None:
    """Copy the tokenizer's files, set the padding side if given, and write a missing map of special tokens."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    path = target / "tokenizer_config.json"
    config = _read(path)
    if padding_side is not None:
        config["padding_side"] = padding_side
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    special = target / "special_tokens_map.json"
    if not special.is_file():
        tokens = special_tokens(config, _added_tokens(target / "tokenizer.json"))
        special.write_text(json.dumps(tokens, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def special_tokens(config: dict[str, Any], added: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Each special token by its role, with its flags if the tokenizer records them."""
    tokens: dict[str, Any] = {}
    for name in SPECIAL_NAMES:
        content = _text(config.get(name))
        if isinstance(content, str):
            entry = added.get(content)
            tokens[name] = {"content": content, **{flag: entry[flag] for flag in FLAGS}} if entry else content
    return tokens


def _added_tokens(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    return {token["content"]: token for token in json.loads(path.read_text(encoding="utf-8"))["added_tokens"]}

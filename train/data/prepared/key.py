"""The key of a prepared data set: a digest of all that decides its tokens and masks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import fields
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...config.sections.data import DataSet
from ..pictures.format import PROCESSOR_FILES
from ..readers import files_of

FORMAT = 3  # raise it when the same rows become other tokens, or the files of a prepared set change
# What says where a set is, or what is done with its examples later. All other settings are part of the key.
NOT_OF_THE_TOKENS = {"section", "field", "settings", "path", "name", "share"}
NOT_OF_THE_ROWS = {"train", "eval", "eval_fraction", "cache", "bad_rows", *(one.name for one in fields(DataSet))}
LIBRARIES = ("gemfleet", "transformers", "tokenizers", "pyarrow", "pillow")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "config.json",  # for the rows of the embedding, and whether the model sees
    *PROCESSOR_FILES,
)


def set_key(data: DataSet, tokenizer_folder: Path) -> str | None:
    """The key of one data set, or None if its content is not on this machine. Reads every byte of its files.

    The names of files count, as rows are named after them; their folder does not.
    """
    found = files_of(data)
    if found is None:
        return None
    own = {one.name: getattr(data, one.name) for one in fields(data) if one.name not in NOT_OF_THE_TOKENS}
    facts = {
        "format": FORMAT,
        "files": [(path.name, file_digest(path)) for path in found.read],
        "left": [path.name for path in found.left],
        "set": own,
        "section": data.section.model_dump(mode="json", exclude=NOT_OF_THE_ROWS),
        "tokenizer": tokenizer_digest(tokenizer_folder),
        "libraries": {name: version(name) for name in LIBRARIES},
    }
    text = json.dumps(facts, sort_keys=True, default=_as_json)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """A digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def tokenizer_digest(folder: Path) -> str:
    """A digest of the files that decide what a tokenizer does."""
    there = [path for name in TOKENIZER_FILES for path in sorted(folder.glob(name)) if path.is_file()]
    return _digest_of(tuple((str(path), path.stat().st_mtime_ns) for path in there))


@lru_cache(maxsize=4)
def _digest_of(files: Iterable[tuple[str, int]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path, _ in files:
        digest.update(f"{Path(path).name} {file_digest(Path(path))} ".encode())
    return digest.hexdigest()


def _as_json(value: Any) -> Any:
    return value.model_dump(mode="json")

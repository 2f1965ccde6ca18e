"""All keys of a request, in the order of docs/platform.md. The conversion and that page are made from this table."""

from __future__ import annotations

from .adapters import PEFT_KEYS, TOKENIZER_KEYS
from .batch import BATCH_KEYS
from .data import DATA_KEYS
from .key import Key
from .places import PLACE_KEYS
from .recipe import RECIPE_KEYS
from .run import RUN_KEYS

SECTIONS: dict[str, tuple[Key, ...]] = {
    "Names and places": PLACE_KEYS,
    "Tokenizer": TOKENIZER_KEYS,
    "Adapters": PEFT_KEYS,
    "Recipe": RECIPE_KEYS,
    "Batch and memory": BATCH_KEYS,
    "Data": DATA_KEYS,
    "The run": RUN_KEYS,
}
TABLE: dict[str, Key] = {key.name: key for keys in SECTIONS.values() for key in keys}
GROUPS = frozenset(name.rpartition(".")[0] for name in TABLE if "." in name)

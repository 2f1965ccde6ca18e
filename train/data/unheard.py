"""Looks at what a row holds besides the text: it is refused if it would change the result, else named.

If a weight, a preference or half of a question were ignored silently, the run would train another thing than meant.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..config.data_section import DataSet
from ..errors import UserError
from .rows import Row

# Names that OpenAI, trl, Axolotl, LLaMA-Factory and Alpaca use.
TELLING_COLUMNS = frozenset(
    {
        "weight",
        "weights",
        "sample_weight",
        "loss_weight",
        "train",
        "training",
        "label",
        "labels",
        "chosen",
        "rejected",
        "loss_mask",
        "completion_mask",
        "assistant_masks",
        "input",
        "instruction",
        "context",
        "system",
        "system_prompt",
        "history",
        "tools",
        "functions",
        "documents",
    }
)
TELLING_KEYS = frozenset(
    {
        "tool_calls",
        "function_call",
        "tool_call_id",
        "tools",
        "functions",
        "reasoning_content",
        "reasoning",
        "thinking",
        "refusal",
        "label",
        "loss",
        "loss_mask",
        "train_detail",
        "training_detail",
        "image",
        "images",
        "audio",
        "audios",
        "video",
        "videos",
    }
)
HEARD_KEYS = frozenset({"role", "content", "weight", "train", "training"})
AS_USUAL = {"weight": 1, "weights": 1, "sample_weight": 1, "loss_weight": 1, "train": True, "training": True}


def refuse_unheard(row: Row, data: DataSet, used: tuple[str, ...]) -> set[str]:
    """The columns and keys that are merely not used. Raises UserError for one that would change what is trained on.

    used: the columns that the format reads. Empty values and `ignore_columns` are passed over.
    """
    unused = set()
    for where, name in _spoken(row, used):
        if name in data.section.ignore_columns:
            continue
        column = where == name
        if name.lower() in (TELLING_COLUMNS if column else TELLING_KEYS):
            raise UserError(
                f"{row.name} of {data.path} has {'the column' if column else 'a message with'} {name!r}, which says "
                f"more of what to train on than gemfleet reads; work it into the text or into {data.settings}.columns, "
                f"or leave it aside with train.data.ignore_columns: [{name}]"
            )
        unused.add(where)
    return unused


def _spoken(row: Row, used: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Each thing in a row that no format reads: its place (`messages.name`), and its own name."""
    for name, value in row.values.items():
        if name not in used:
            if not (_empty(value) or value == AS_USUAL.get(name.lower(), ...)):
                yield name, name
        elif isinstance(value, list):
            for message in value:
                for key, inner in message.items() if isinstance(message, dict) else ():
                    if key not in HEARD_KEYS and not _empty(inner):
                        yield f"{name}.{key}", key


def _empty(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_empty, value.values()))
    return value is None or value == "" or (isinstance(value, list) and all(map(_empty, value)))

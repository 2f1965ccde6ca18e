"""Looks at what a row holds besides the text: it is refused if it would change the result, else named.

If a weight, a preference or half of a question were ignored silently, the run would train another thing than meant.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..config.sections.data import DataSet
from ..errors import UserError
from .rows import Row
from .shapes.choice import RowFormat, message_columns, preference_sentence, used_columns, verdict_sentence
from .shapes.messages import heard_keys, message_keys

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
        "kto_tag",
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
AS_USUAL = {"weight": 1, "weights": 1, "sample_weight": 1, "loss_weight": 1, "train": True, "training": True}


def without_ignored(row: Row, data: DataSet) -> Row:
    """The row without what `ignore_columns` names: neither heard nor refused. Roles and contents of messages stay."""
    ignored, lists = set(data.section.ignore_columns), message_columns(data)
    if not ignored:
        return row
    values = {name: value for name, value in row.values.items() if name not in ignored}
    for name in lists:
        if isinstance(values.get(name), list):
            values[name] = [_without_keys(message, ignored, data) for message in values[name]]
    return Row(row.name, values)


def _without_keys(message: Any, ignored: set[str], data: DataSet) -> Any:
    if not isinstance(message, dict):
        return message
    gone = ignored.difference(message_keys(message, data.columns))
    return {key: value for key, value in message.items() if key not in gone}


def refuse_unheard(row: Row, data: DataSet, row_format: RowFormat) -> set[str]:
    """The columns and keys that are merely not used. Raises UserError for one that would change what is trained on.

    Empty values are passed over.
    """
    unused = set()
    for where, name, value in _spoken(row, data, used_columns(data, row_format)):
        column = where == name
        if name.lower() in (TELLING_COLUMNS if column else TELLING_KEYS):
            _refuse(row, data, name, value, column)
        unused.add(where)
    return unused


def _refuse(row: Row, data: DataSet, name: str, value: Any, column: bool) -> None:
    if column and name in ("chosen", "rejected") and row.values.get("chosen") and row.values.get("rejected"):
        raise UserError(preference_sentence(data))
    if column and name in ("label", "kto_tag") and isinstance(value, bool):
        raise UserError(verdict_sentence(data, name))
    raise UserError(
        f"{row.name} of {data.path} has {'the column' if column else 'a message with'} {name!r}, which says "
        f"more of what to train on than gemfleet reads; work it into the text or into {data.settings}.columns, "
        f"or leave it aside with train.data.ignore_columns: [{name}]"
    )


def _spoken(row: Row, data: DataSet, used: tuple[str, ...]) -> Iterator[tuple[str, str, Any]]:
    """Each thing in a row that no format reads: its place (`messages.name`), its own name and its value."""
    lists = message_columns(data)
    for name, value in row.values.items():
        if name not in used:
            if not (_empty(value) or value == AS_USUAL.get(name.lower(), ...)):
                yield name, name, value
        elif isinstance(value, list) and name in lists:
            for message in value:
                if not isinstance(message, dict):
                    continue
                heard = heard_keys(message, data.columns, data.roles)
                for key, inner in message.items():
                    if key not in heard and not _empty(inner):
                        yield f"{name}.{key}", key, inner


def _empty(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_empty, value.values()))
    return value is None or value == "" or (isinstance(value, list) and all(map(_empty, value)))

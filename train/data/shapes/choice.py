"""Recognises the shape of a data set's rows by its columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from ...config.sections.data import DataSet
from ...errors import UserError

RowFormat = Literal["text", "prompt_completion", "messages", "sharegpt", "alpaca"]
SINGLE_IMAGE = "image"  # what many data sets call the column of their one picture
CHATS: tuple[RowFormat, ...] = ("messages", "sharegpt", "alpaca")


def choose_format(data: DataSet, columns: Iterable[str]) -> RowFormat:
    """The format of a data set with these columns. UserError names the missing column and those that are there."""
    needed, there = needed_columns(data), sorted(set(columns))
    listed = ", ".join(map(repr, there)) or "none"
    if data.format != "auto":
        missing = [name for name in needed[data.format] if name not in there]
        if missing:
            raise UserError(
                f"{data.settings}.format is {data.format}, but {data.path} has no column {missing[0]!r}; "
                f"its columns are {listed}; name the right one in {data.settings}.columns"
            )
        return data.format
    usable = set(there).difference(data.section.ignore_columns)
    for row_format, wanted in needed.items():
        if usable.issuperset(wanted):
            return row_format
    if usable.issuperset(("chosen", "rejected")):
        raise UserError(preference_sentence(data))
    *others, last = (" with ".join(map(repr, wanted)) for wanted in needed.values())
    raise UserError(
        f"{data.path} has none of the columns {', '.join(others)}, or {last}; its columns are {listed}; "
        f"name the right ones in {data.settings}.columns"
    )


def needed_columns(data: DataSet) -> dict[RowFormat, tuple[str, ...]]:
    """The columns that each format cannot do without. `auto` tries the formats in this order."""
    names = data.columns
    return {
        "messages": (names.messages,),
        "prompt_completion": (names.prompt, names.completion),
        "alpaca": (names.instruction, names.output),
        "text": (names.text,),
        "sharegpt": (names.conversations,),
    }


def used_columns(data: DataSet, row_format: RowFormat) -> tuple[str, ...]:
    """The columns that a format reads, needed or not."""
    names = data.columns
    images = (names.images, SINGLE_IMAGE)
    more = {
        "prompt_completion": images,
        "messages": (names.system, names.tools, "functions", *images),
        "sharegpt": (names.system, names.tools, "functions", *images),
        "alpaca": (names.input, names.system, names.history, names.tools, *images),
    }
    return (*needed_columns(data)[row_format], *more.get(row_format, ()))


def message_columns(data: DataSet) -> tuple[str, ...]:
    """The columns that may hold lists of messages."""
    names = data.columns
    return (names.messages, names.conversations, names.prompt, names.completion)


def image_column(values: Mapping[str, Any], data: DataSet) -> str | None:
    """The column of a row that holds its pictures; None if there is none, or if it is a text to learn."""
    names = data.columns
    texts = {one for key, one in names.model_dump().items() if key != "images"}
    return next((name for name in (names.images, SINGLE_IMAGE) if values.get(name) and name not in texts), None)


def preference_sentence(data: DataSet) -> str:
    return (
        f"{data.path} is a data set of preferences (for DPO: its columns `chosen` and `rejected` are a better and a "
        "worse answer), but gemfleet trains on answers alone; write the questions with their better answers as "
        "`messages`, or as `prompt` and `completion`"
    )


def verdict_sentence(data: DataSet, column: str) -> str:
    return (
        f"{data.path} is a data set of verdicts (for KTO: its column {column!r} says whether an answer is good), but "
        f"gemfleet trains on all answers alike; keep the rows with good answers, then set "
        f"train.data.ignore_columns: [{column}]"
    )

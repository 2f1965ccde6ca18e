"""Rows of the table: how the data is read."""

from __future__ import annotations

from .key import Key, P
from .values import Anything, Choice, Text

ONE_TEMPLATE = (
    'gemfleet writes chats with Gemma\'s own template; set it to `tokenizer` for a data set of messages, or to "None" '
    "for text that is written out"
)
NOT_SFT = "belongs to preference training; supervised fine-tuning has no use for it"


def unused(name: str, meant: str, why: str) -> Key:
    return Key(P + name, meant, "", Anything(), why, how="unused")


DATA_KEYS = (
    Key(
        P + "chat_template",
        "how chats become text",
        "train.data.format",
        Choice({"tokenizer": "messages", "gemma": "messages", "gemma3": "messages"}, remedy=ONE_TEMPLATE),
        "none: the text column as it is; `tokenizer`: a column of messages in Gemma's turns",
        how="together",
    ),
    Key(
        P + "dataset_text_field",
        "column of the texts",
        "train.data.columns.text",
        Text("the name of a column"),
        "the column that is trained on",
        how="together",
    ),
    Key(
        P + "column_mappings.text_column",
        "the same",
        "train.data.columns.text",
        Text("the name of a column"),
        "has to agree with dataset_text_field where both are given",
        how="together",
    ),
    unused("column_mappings.prompt_text_column", "column of the prompts", NOT_SFT),
    unused("column_mappings.rejected_text_column", "column of the worse answers", NOT_SFT),
    unused("max_prompt_length", "longest prompt", NOT_SFT),
    unused("max_completion_length", "longest answer", NOT_SFT),
    unused("model_ref", "reference model", NOT_SFT),
    unused("dpo_beta", "strength of the preference", NOT_SFT),
)

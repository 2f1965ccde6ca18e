"""How the rows of a data set are read: the format, its columns, the roles of messages, and what is learned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ..strict import StrictModel

DataFormat = Literal["auto", "text", "prompt_completion", "messages", "sharegpt", "alpaca"]
TrainOn = Literal["all", "last", "completion"]
Roles = dict[str, Literal["system", "user", "assistant", "tool", "function_call"]]
Name = Annotated[str, Field(min_length=1)]


class ColumnsConfig(StrictModel):
    """The name of each column. A column that the data lacks is an error only if the format in use reads it."""

    text: Name = "text"
    prompt: Name = "prompt"
    completion: Name = "completion"
    messages: Name = "messages"
    conversations: Name = "conversations"
    instruction: Name = "instruction"
    input: Name = "input"
    output: Name = "output"
    history: Name = "history"
    system: Name = "system"
    tools: Name = "tools"
    images: Name = "images"
    role: Annotated[Name | None, Field(description="key of a message; null: `role`, or ShareGPT's `from`")] = None
    content: Annotated[Name | None, Field(description="key of a message; null: `content`, or ShareGPT's `value`")] = (
        None
    )

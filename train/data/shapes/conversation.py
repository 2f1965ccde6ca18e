"""What a row of any shape becomes: a conversation, or plain text. Everything after that knows only these."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


class RowError(ValueError):
    """Why one row cannot be used. Like faults share one `reason`; `detail` says more about this row."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class ToolCall:
    """A function that the assistant wants called. arguments: as the row has them, an object or its JSON"""

    name: str
    arguments: Any
    id: str = ""

    def parameters(self) -> dict[str, Any]:
        """The arguments by name. Raises RowError if they are no JSON object."""
        found = self.arguments
        try:
            found = json.loads(found.strip() or "null") if isinstance(found, str) else found
        except ValueError as error:
            raise RowError("a tool call whose arguments are not JSON", self.name) from error
        if found is None or found == []:  # as PHP writes an empty object
            return {}
        if not isinstance(found, dict):
            raise RowError("a tool call whose arguments are no JSON object", self.name)
        return found


@dataclass(frozen=True)
class Picture:
    """A picture that a row names, or why there is none.

    name: what the row calls it, for a sentence; content: its file, as a camera or program wrote it
    fault: reason and detail of a `RowError`; None: the content is there
    """

    name: str
    content: bytes = field(default=b"", repr=False)
    fault: tuple[str, str] | None = None


@dataclass(frozen=True)
class Place:
    """A place in a message for a picture of the row's column. number: which of them, from 0; None: the next one"""

    number: int | None = None


Part = str | Picture | Place


@dataclass(frozen=True)
class Message:
    """One message.

    number:     its place in the row, from 1
    content:    a text, or its parts: texts, pictures, and places for those of the row's column
    told:       what the row says of training on it; None: nothing
    supervised: whether it is an answer to train on
    name, call_id: of the function whose result this is
    """

    role: Role
    content: str | tuple[Part, ...]
    number: int = 1
    calls: tuple[ToolCall, ...] = ()
    told: bool | None = None
    supervised: bool = False
    name: str = ""
    call_id: str = ""

    @property
    def parts(self) -> tuple[Part, ...]:
        return (self.content,) if isinstance(self.content, str) else self.content

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(part for part in self.parts if isinstance(part, str))

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return tuple(part for part in self.parts if isinstance(part, Picture))


@dataclass(frozen=True)
class Conversation:
    """Messages, and the functions that the assistant may call, as JSON objects. whole: questions are targets too"""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    whole: bool = False

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return tuple(picture for message in self.messages for picture in message.pictures)


@dataclass(frozen=True)
class PlainText:
    """A text to learn, after a prompt that may be empty. whole: the prompt is a target too"""

    text: str
    prompt: str = ""
    whole: bool = False

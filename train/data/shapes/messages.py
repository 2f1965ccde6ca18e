"""Reads a list of messages: OpenAI's (`role`, `content`) and ShareGPT's (`from`, `value`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from ...config.sections.data_format import ColumnsConfig
from .conversation import Message, Part, Place, Role, RowError, ToolCall

TARGET_KEYS = ("weight", "train", "training")  # of a message: OpenAI's, and Axolotl's two names
TEXT_PARTS = ("text", "input_text", "output_text")  # OpenAI's two ways
CALL = "function_call"  # the role of an answer that is the JSON of one or more calls
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "model": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    CALL: CALL,
    "tool_call": CALL,
}


def message_keys(message: Mapping[str, Any], columns: ColumnsConfig) -> tuple[str, str]:
    """The keys of a message's role and content. A table of mixed rows has all four, two of them null."""
    return (
        columns.role or _there(message, "role", "from"),
        columns.content or _there(message, "content", "value"),
    )


def _there(message: Mapping[str, Any], usual: str, sharegpt: str) -> str:
    return sharegpt if message.get(usual) is None and message.get(sharegpt) is not None else usual


def heard_keys(message: Mapping[str, Any], columns: ColumnsConfig, roles: Mapping[str, str]) -> set[str]:
    """The keys of a message that are read. A name is one only of a function's result."""
    role, content = message_keys(message, columns)
    heard = {role, content, "tool_calls", CALL, "tool_call_id", *TARGET_KEYS}
    return heard | ({"name"} if _role(message.get(role), roles) == "tool" else set())


def read_messages(value: Any, columns: ColumnsConfig, roles: Mapping[str, str], first: int = 1) -> list[Message]:
    """The messages of a list.

    roles: what a role of the data means, beside `ROLES`; first: the number of the first message
    Raises RowError for a list that cannot be used.
    """
    if not isinstance(value, list) or not value:
        found = "an empty list" if value == [] else f"a {type(value).__name__}"
        raise RowError("messages that are not a list with at least one message", found)
    return [_message(message, number, columns, roles) for number, message in enumerate(value, first)]


def _message(message: Any, number: int, columns: ColumnsConfig, roles: Mapping[str, str]) -> Message:
    role_key, content_key = message_keys(message, columns) if isinstance(message, dict) else ("", "")
    if not isinstance(message, dict) or not isinstance(message.get(role_key), str):
        raise RowError("a message without role and content", f"message {number}")
    role = _role(message[role_key], roles)
    calls = _calls(message)
    if content_key not in message and not calls:
        raise RowError("a message without role and content", f"message {number}")
    if role is None:
        raise RowError("a role that has no meaning here (train.data.roles gives it one)", repr(message[role_key])[:40])
    content = message.get(content_key)
    if role == CALL:
        role, calls, content = "assistant", _spelled_calls(content), ""
    if calls and role != "assistant":
        raise RowError("tool calls in a message that is not the assistant's", f"message {number}")
    return Message(
        cast(Role, role),
        _content(content, bool(calls), role == "tool"),
        number,
        calls,
        _told(message, role == "assistant"),
        name=str(message.get("name") or "") if role == "tool" else "",
        call_id=str(message.get("tool_call_id") or ""),
    )


def _role(name: Any, roles: Mapping[str, str]) -> str | None:
    return roles.get(name) or ROLES.get(name) if isinstance(name, str) else None


def _told(message: Mapping[str, Any], answer: bool) -> bool | None:
    """Whether the message itself says that it is supervised; None if it says nothing."""
    told = None
    for key in TARGET_KEYS:
        value = message.get(key)
        if value is None:
            continue
        if value not in (0, 1):
            raise RowError(f"a message whose {key} is neither 0 nor 1", str(value)[:40])
        if value and not answer:
            raise RowError("a message to be trained on that is not an answer of the assistant's", f"{key} {value}")
        told = bool(value) and told is not False
    return told


def _content(content: Any, may_be_missing: bool, is_result: bool) -> str | tuple[Part, ...]:
    if isinstance(content, str):
        return content
    if content is None and may_be_missing:
        return ""
    if is_result and (isinstance(content, dict) or (isinstance(content, list) and not _are_parts(content))):
        return json.dumps(content, ensure_ascii=False, default=str)
    if not isinstance(content, list):
        raise RowError("message content that is not text", f"a {type(content).__name__}")
    return tuple(map(_part, content))


def _are_parts(content: list[Any]) -> bool:
    return all(isinstance(part, str) or (isinstance(part, dict) and "type" in part) for part in content)


def _part(part: Any) -> Part:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in TEXT_PARTS and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind == "image" and "picture" in part:
        number = part.get("index")
        return part["picture"] or Place(number if isinstance(number, int) else None)
    raise RowError("message content that is not text", f"a part of type {str(kind)[:40]!r}")


def _calls(message: Mapping[str, Any]) -> tuple[ToolCall, ...]:
    listed = message.get("tool_calls") or []
    if not isinstance(listed, list):
        raise RowError("tool_calls that are not a list", f"a {type(listed).__name__}")
    legacy = [message[CALL]] if message.get(CALL) else []
    return tuple(_call(entry) for entry in [*listed, *legacy])


def _spelled_calls(content: Any) -> tuple[ToolCall, ...]:
    """The calls that an answer spells out in JSON."""
    try:
        found = json.loads(content) if isinstance(content, str) else content
    except ValueError as error:
        raise RowError("a function call that is not JSON", str(content)[:40]) from error
    return tuple(_call(entry) for entry in (found if isinstance(found, list) and found else [found]))


def _call(entry: Any) -> ToolCall:
    inner = entry.get("function", entry) if isinstance(entry, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise RowError("a tool call without a function's name")
    call = ToolCall(inner["name"], inner.get("arguments", inner.get("parameters")), str(entry.get("id") or ""))
    call.parameters()
    return call

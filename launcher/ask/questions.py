"""Reads the questions that a person gives: as arguments, from a file, or from standard input."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gemfleet.train.data.shapes.conversation import Message, Picture
from gemfleet.train.errors import UserError

KEYS = ("prompt", "question")
ROLES = ("system", "user", "assistant")


def conversation(texts: Sequence[str], system: str = "") -> list[Message]:
    """Messages of texts that user and assistant say in turn."""
    said = [Message("user" if n % 2 == 0 else "assistant", text, n + 1) for n, text in enumerate(texts)]
    return [*([Message("system", system, 0)] if system else []), *said]


def about(pictures: Sequence[Picture], messages: Sequence[Message]) -> list[Message]:
    """The conversation with these pictures before the text of its last question."""
    *before, last = messages
    return [*before, replace(last, content=(*pictures, *last.parts))] if pictures else [*messages]


def read_questions(path: Path) -> list[list[Message]]:
    """The questions of a file: of `.jsonl`, a row each, else a line each. Raises UserError for a row without one."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--file {path} cannot be read as text ({error})") from error
    if path.suffix != ".jsonl":
        return questions_of(lines)
    rows = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    return [_of_row(line, f"{path} line {number}") for number, line in rows]


def questions_of(lines: Iterable[str]) -> list[list[Message]]:
    """A question for each line that has one."""
    return [conversation([line.rstrip("\r\n")]) for line in lines if line.strip()]


def _of_row(line: str, name: str) -> list[Message]:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise UserError(f"{name} is not valid JSON ({error})") from error
    columns = row if isinstance(row, dict) else {}
    text = row if isinstance(row, str) else next((columns[key] for key in KEYS if key in columns), None)
    if isinstance(text, str) and text.strip():
        return conversation([text])
    messages = columns.get("messages")
    listed = messages if isinstance(messages, list) else []
    found = [_message(one, number, name) for number, one in enumerate(listed, 1)]
    while found and found[-1].role != "user":
        found.pop()  # the answer that the data has
    if not found:
        raise UserError(f'{name} has no question; write "prompt", "question", or "messages" with one of the user')
    return found


def _message(message: Any, number: int, name: str) -> Message:
    role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
    if role not in ROLES or not isinstance(content, str):
        raise UserError(f"{name}, message {number}: give a `role` of {', '.join(ROLES)}, and `content` as text")
    return Message(role, content, number)

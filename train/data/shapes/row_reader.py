"""Reads rows of any shape."""

from __future__ import annotations

import json
from typing import Any

from ...config.sections.data import DataSet
from .choice import RowFormat, image_column
from .conversation import Conversation, Message, Picture, PlainText, RowError
from .messages import read_messages
from .pictures import placed
from .turns import joined, supervised


class RowReader:
    """Turns the rows of one data set into conversations or plain text.

    bos, eos: the tokenizer's tokens, of which a text may already hold one
    """

    def __init__(self, data: DataSet, row_format: RowFormat, bos: str, eos: str) -> None:
        self._data, self._names, self._format = data, data.columns, row_format
        self._bos, self._eos = bos, eos

    def read(self, values: dict[str, Any]) -> Conversation | PlainText:
        """The row. Raises RowError if it cannot be used."""
        names = self._names
        if self._format == "alpaca":
            return self._alpaca(values)
        if self._format == "text":
            _refuse_pictures(image_column(values, self._data))
            return PlainText(self._answer(values, names.text))
        if self._format == "prompt_completion":
            prompt = _field(values, names.prompt)
            if isinstance(prompt, list):
                return self._completed(values, prompt)
            _refuse_pictures(image_column(values, self._data))
            answer = self._answer(values, names.completion)
            return PlainText(answer, self._text(values, names.prompt), self._data.supervise_prompt)
        column = names.messages if self._format == "messages" else names.conversations
        messages = self._system(values) + self._messages(_field(values, column))
        if [message.role for message in messages[:2]] == ["system", "system"] and messages[0].number == 0:
            raise RowError("a system column beside a system message")
        return self._conversation(messages, values)

    def _completed(self, values: dict[str, Any], prompt: list[Any]) -> Conversation:
        """A conversation in two columns: the prompt's messages, then those of the completion or its text."""
        completion = _field(values, self._names.completion)
        messages, number = self._messages(prompt), len(prompt) + 1
        if not isinstance(completion, list):
            if not isinstance(completion, str):
                raise RowError("message content that is not text", f"a {type(completion).__name__}")
            messages.append(Message("assistant", completion, number))
        elif completion:
            messages += self._messages(completion, number)
        return self._conversation(messages, values, len(prompt))

    def _alpaca(self, values: dict[str, Any]) -> Conversation:
        names = self._names
        asked = [text for name in (names.instruction, names.input) if (text := _optional_text(values, name))]
        if not asked:
            raise RowError(f"{names.instruction} is empty")
        turns = [*_history(values.get(names.history), names.history), ("\n".join(asked), _text(values, names.output))]
        messages = self._system(values)
        for question, answer in turns:
            number = len(messages) + 1
            messages += [Message("user", question, number), Message("assistant", answer, number + 1)]
        return self._conversation(messages, values)

    def _messages(self, value: Any, first: int = 1) -> list[Message]:
        return read_messages(value, self._names, self._data.roles, first)

    def _system(self, values: dict[str, Any]) -> list[Message]:
        text = _optional_text(values, self._names.system)
        return [Message("system", text, 0)] if text else []

    def _conversation(self, messages: list[Message], values: dict[str, Any], prompt: int | None = None) -> Conversation:
        """prompt: the number of the prompt's messages, where the row tells it apart"""
        data = self._data
        whole = data.supervise_prompt
        messages = placed(messages, self._pictures(values))
        if whole and any(message.told is False for message in messages):
            raise RowError("a message that is not to be trained on, beside supervise_prompt")
        train_on = data.train_on or ("all" if prompt is None else "completion")
        decided = supervised(joined(messages, data.merge_roles), train_on, prompt)
        return Conversation(decided, self._tools(values) if prompt is None else (), whole)

    def _pictures(self, values: dict[str, Any]) -> list[Picture]:
        """Those of the row's column."""
        column = image_column(values, self._data)
        return list(values[column]) if column else []

    def _tools(self, values: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        """The functions that the assistant may call; `functions` is OpenAI's earlier name for the column."""
        name = self._names.tools if values.get(self._names.tools) else "functions"
        if name != "functions" and values.get("functions"):
            raise RowError(f"both {name} and functions")
        found = values.get(name)
        try:
            found = (json.loads(found) if isinstance(found, str) and found.strip() else found) or []
        except ValueError as error:
            raise RowError(f"{name} that are not JSON", str(error)[:60]) from error
        listed = found if isinstance(found, list) else [found]
        for tool in listed:
            inner = tool.get("function", tool) if isinstance(tool, dict) else None
            if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
                raise RowError(f"{name} of which one has no name")
        return tuple(listed)

    def _text(self, values: dict[str, Any], name: str) -> str:
        """A text field without a leading `<bos>`, since every example gets one."""
        text = _text(values, name)
        while text.startswith(self._bos):
            text = text.removeprefix(self._bos)
        if not text:
            raise RowError(f"{name} is empty")
        return text

    def _answer(self, values: dict[str, Any], name: str) -> str:
        """A text field that is learned. A trailing `<eos>` is dropped if every example gets one."""
        text = self._text(values, name)
        while self._data.section.add_eos and text.rstrip().endswith(self._eos):
            text = text.rstrip().removesuffix(self._eos)
        if not text:
            raise RowError(f"{name} is empty")
        return text


def _refuse_pictures(column: str | None) -> None:
    if column:
        raise RowError(f"pictures in the column {column} of a text without turns (write it as messages)")


def _field(values: dict[str, Any], name: str) -> Any:
    if values.get(name) is None:
        raise RowError(f"no {name}")
    return values[name]


def _text(values: dict[str, Any], name: str) -> str:
    text = _field(values, name)
    if not isinstance(text, str):
        raise RowError(f"{name} is not text", f"a {type(text).__name__}")
    if not text:
        raise RowError(f"{name} is empty")
    return text


def _optional_text(values: dict[str, Any], name: str) -> str:
    return _text(values, name) if values.get(name) not in (None, "") else ""


def _history(value: Any, name: str) -> list[tuple[str, str]]:
    """The earlier turns: pairs of question and answer."""
    pairs = value or []
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        for pair in pairs
    ):
        raise RowError(f"{name} that is not a list of questions with their answers")
    return [(question, answer) for question, answer in pairs]

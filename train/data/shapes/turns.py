"""Joins turns of one role, and decides which answers of a conversation are supervised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...config.sections.data_format import TrainOn
from .conversation import Message, RowError

NOT_ALTERNATING = "roles that do not alternate user, assistant"


def joined(messages: Sequence[Message], merge: bool) -> list[Message]:
    """The messages without two turns of one role in a row. Results of tools may follow each other.

    merge: join such turns; else RowError names the first
    """
    result: list[Message] = []
    for message in messages:
        if not result or result[-1].role != message.role or message.role == "tool":
            result.append(message)
        elif merge:
            result[-1] = _join(result[-1], message)
        else:
            raise RowError(NOT_ALTERNATING, f"message {message.number} is {message.role!r} again")
    return result


def _join(first: Message, second: Message) -> Message:
    if first.told != second.told:
        raise RowError("turns to join of which one alone is trained on", f"messages {first.number}, {second.number}")
    if first.pictures or second.pictures:
        raise RowError("turns to join that hold pictures", f"messages {first.number}, {second.number}")
    texts = ["".join(message.texts) for message in (first, second)]
    return replace(first, content="\n\n".join(filter(None, texts)), calls=first.calls + second.calls)


def supervised(messages: Sequence[Message], train_on: TrainOn, prompt: int | None = None) -> tuple[Message, ...]:
    """The messages, each with `supervised` decided. What a message says of itself wins.

    prompt: the number of the prompt's last message; None: of the last question
    """
    answers = [message.number for message in messages if message.role == "assistant"]
    if train_on == "last":
        answers = answers[-1:]
    elif train_on == "completion":
        asked = [message.number for message in messages if message.role == "user"]
        after = max(asked, default=0) if prompt is None else prompt
        answers = [number for number in answers if number > after]
    return tuple(
        replace(message, supervised=message.number in answers if message.told is None else message.told)
        for message in messages
    )

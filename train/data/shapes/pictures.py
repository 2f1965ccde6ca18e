"""Puts the pictures of a row's column where its messages have places for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from .conversation import Message, Part, Picture, Place, RowError

MARK = "<image>"  # LLaMA-Factory's, in a text


def placed(messages: Sequence[Message], column: Sequence[Picture]) -> list[Message]:
    """The messages with a picture in each place. column: the row's pictures besides; without any, a mark is a text

    Where nothing says where the column's pictures belong, they come before the first question, as in trl.
    Raises RowError where they do not fit the places, and for a picture in a message that is not the user's.
    """
    marked = [_with_places(message) if column else message for message in messages]
    places = [part for message in marked for part in message.parts if isinstance(part, Place)]
    if column and not places:
        first = next((n for n, message in enumerate(marked) if message.role == "user"), None)
        if first is None:
            raise RowError("pictures without a question")
        marked[first] = replace(marked[first], content=(*column, *marked[first].parts))
    elif places:
        pictures = _chosen(places, column)
        marked = [_filled(message, pictures) for message in marked]
    for message in marked:
        if message.role != "user" and message.pictures:
            raise RowError(
                "a picture in a message that is not the user's", f"message {message.number} is {message.role!r}"
            )
    return marked


def _with_places(message: Message) -> Message:
    if not any(MARK in text for text in message.texts):
        return message
    return replace(message, content=tuple(piece for part in message.parts for piece in _split(part)))


def _split(part: Part) -> Iterator[Part]:
    """A text between its marks, with a place for each."""
    if not isinstance(part, str):
        yield part
        return
    first, *rest = part.split(MARK)
    yield first
    for text in rest:
        yield Place()
        yield text


def _chosen(places: Sequence[Place], column: Sequence[Picture]) -> Iterator[Picture]:
    """A picture for each place."""
    numbers = [n if place.number is None else place.number for n, place in enumerate(places)]
    if sorted(numbers) != list(range(len(column))):
        raise RowError("pictures that do not fit their places", f"{len(column)} for {len(places)} places")
    return (column[number] for number in numbers)


def _filled(message: Message, pictures: Iterator[Picture]) -> Message:
    if isinstance(message.content, str):
        return message
    return replace(message, content=tuple(next(pictures) if isinstance(p, Place) else p for p in message.parts))

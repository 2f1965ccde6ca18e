"""Gemma's own turns: a conversation as segments. Only the assistant's words and their end mark are supervised.

Segments, not one string: what a person wrote is tokenised without control tokens, so a message that spells out
`<end_of_turn>` stays text and cannot end its turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from ..shapes.conversation import Conversation, Message, Picture, Place, RowError
from ..shapes.turns import NOT_ALTERNATING
from .functions import calls_text, functions_text
from .masks import Rendered, with_pictures
from .segments import Segment

AROUND = "\n\n"  # what transformers writes before and behind a picture
TURN_START, TURN_END = "<start_of_turn>", "<end_of_turn>"

# The template of the published Gemma 3 instruction models (google/gemma-3-1b-it, tokenizer_config.json).
CHAT_TEMPLATE = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '

' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '

' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '
' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
"""


@dataclass(frozen=True)
class _Turn:
    """A turn of Gemma's, which knows no tools: their results are what the user says."""

    role: str
    parts: tuple[str | Picture, ...]
    message: Message


def chat_segments(conversation: Conversation) -> list[Segment]:
    """The segments of a conversation after `<bos>`. Raises RowError for messages that Gemma's template refuses."""
    system, messages = _split_system(conversation)
    segments: list[Segment] = []
    for position, turn in enumerate(_turns(_in_order_of_calls(messages))):
        if turn.role != ("user", "model")[position % 2]:
            raise RowError(NOT_ALTERNATING, f"message {turn.message.number} is {turn.message.role!r}")
        header = f"{turn.role}\n{system if position == 0 else ''}"
        supervised = turn.message.supervised
        segments += [
            Segment(TURN_START, control=True),
            *_said(turn.parts, supervised, header),
            Segment(TURN_END, supervised, control=True),
            Segment("\n"),
        ]
    if conversation.whole:
        return [
            replace(part, text=part.header + part.text, header="", supervised=not part.picture) for part in segments
        ]
    return segments


def with_soft_tokens(rendered: Rendered, tokenizer: Any, picture: Sequence[int], count: int) -> Rendered:
    """What another template wrote, with the tokens of a picture at each of its `count` marks. picture: their ids"""
    written = tokenizer.convert_ids_to_tokens(list(picture))
    return with_pictures(rendered, written[0], f"{AROUND}{''.join(written)}{AROUND}", count)


def _said(parts: Sequence[str | Picture], supervised: bool, header: str) -> Iterator[Segment]:
    """What is said in a turn. Around each picture are empty lines, which are one text with what is beside them.

    Only the user shows pictures, so nothing that comes before one is supervised.
    """
    text = ""
    for part in parts:
        if isinstance(part, str):
            text += part
            continue
        yield Segment(header + text + AROUND, literal=True)
        yield Segment("", control=True, picture=True)
        text, header = AROUND, ""
    yield Segment(text, supervised, header, literal=True)


def _split_system(conversation: Conversation) -> tuple[str, Sequence[Message]]:
    """What comes before the first question ("" if nothing): the functions and the system's text; and the turns."""
    parts, messages = [], conversation.messages
    if conversation.tools:
        parts.append(functions_text(conversation.tools))
    if messages[0].role == "system":
        parts.append("".join(messages[0].texts))
        messages = messages[1:]
        if not messages:
            raise RowError("a system message and nothing else")
    return "".join(f"{part}\n\n" for part in parts), messages


def _in_order_of_calls(messages: Sequence[Message]) -> list[Message]:
    """Puts the results of several calls in the order of the calls: nothing else tells which result is whose."""
    found = list(messages)
    for index, message in enumerate(messages):
        called = [call.id for call in message.calls]
        results = list(takewhile(lambda one: one.role == "tool", messages[index + 1 :])) if called else []
        if all(result.call_id in called for result in results):
            found[index + 1 : index + 1 + len(results)] = sorted(results, key=lambda one: called.index(one.call_id))
    return found


def _turns(messages: Sequence[Message]) -> Iterator[_Turn]:
    """The messages as turns. Results of tools, and a question right after them, are one turn of the user's."""
    last: _Turn | None = None
    for message in messages:
        parts = tuple(
            part.strip() if isinstance(part, str) else part for part in message.parts if not isinstance(part, Place)
        )
        if last is not None and last.message.role == "tool" and message.role in ("tool", "user"):
            last = _Turn("user", (*last.parts, "\n", *parts), message)
            continue
        if last is not None:
            yield last
        if message.calls:
            parts = ("\n".join(filter(None, ["".join(map(str, parts)), calls_text(message.calls)])),)
        last = _Turn({"assistant": "model", "tool": "user"}.get(message.role, message.role), parts, message)
    if last is not None:
        yield last

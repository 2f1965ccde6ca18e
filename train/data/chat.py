"""Turns a conversation into segments. Only the assistant's words and their end mark are supervised.

Segments, not one string: what a person wrote is tokenised without control tokens, so a message that spells out
`<end_of_turn>` stays text and cannot end its turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

TURN_START, TURN_END = "<start_of_turn>", "<end_of_turn>"
TARGET_KEYS = ("weight", "train", "training")  # of a message: OpenAI's, and Axolotl's two names

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


class RowError(ValueError):
    """Why one row cannot be used. Like faults share one `reason`; `detail` says more about this row."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Segment:
    """A stretch of text that is tokenised on its own.

    header:     text before `text` in the same tokenisation, never supervised
    supervised: whether the tokens of `text` are targets
    control:    `text` is one control token
    literal:    control tokens that `text` spells out stay plain text
    """

    text: str
    supervised: bool = False
    header: str = ""
    control: bool = False
    literal: bool = False


def chat_segments(messages: Any, supervise_from: int = 0) -> list[Segment]:
    """The segments of a conversation after `<bos>`. Assistant turns from message `supervise_from` on are supervised.

    Raises RowError if Gemma's template does not accept the messages.
    """
    system, turns = _split_system(messages)
    first = len(messages) - len(turns)
    segments: list[Segment] = []
    for position, message in enumerate(turns):
        expected = ("user", "assistant")[position % 2]
        role = "assistant" if message["role"] == "model" else message["role"]
        if role != expected:
            raise RowError(
                "roles that do not alternate user, assistant", f"message {first + position + 1} is {message['role']!r}"
            )
        supervised = _is_target(message, role == "assistant" and first + position >= supervise_from)
        prefix = system if position == 0 else ""
        header = f"{'model' if role == 'assistant' else 'user'}\n{prefix}"
        segments += [
            Segment(TURN_START, control=True),
            Segment(_content(message["content"]), supervised, header, literal=True),
            Segment(TURN_END, supervised, control=True),
            Segment("\n"),
        ]
    return segments


def render_chat(messages: Any) -> str:
    """The conversation as one string, as Gemma's template writes it, without `<bos>`."""
    return "".join(segment.header + segment.text for segment in chat_segments(messages))


def _split_system(messages: Any) -> tuple[str, Sequence[Any]]:
    """The system prefix of the first user turn ("" if there is none), and the turns."""
    if not isinstance(messages, list) or not messages:
        raise RowError("messages that are not a list with at least one message")
    for position, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or "content" not in message:
            raise RowError("a message without role and content", f"message {position}")
    if messages[0]["role"] != "system":
        return "", messages
    if len(messages) == 1:
        raise RowError("a system message and nothing else")
    _is_target(messages[0], False)
    return _content(messages[0]["content"], trim=False) + "\n\n", messages[1:]


def _is_target(message: dict[str, Any], usually: bool) -> bool:
    """Whether a message is supervised: `usually`, unless the message itself says 0 or false."""
    for key in TARGET_KEYS:
        value = message.get(key)
        if value is None:
            continue
        if value not in (0, 1):
            raise RowError(f"a message whose {key} is neither 0 nor 1", str(value)[:40])
        if value and not usually:
            raise RowError("a message to be trained on that is not an answer of the assistant's", f"{key} {value}")
        if not value:
            return False
    return usually


def _content(content: Any, trim: bool = True) -> str:
    parts = content if isinstance(content, list) else [content]
    texts = [_part_text(part) for part in parts]
    return "".join(text.strip() if trim else text for text in texts)


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if isinstance(kind, str) and kind.startswith("image"):
        raise RowError("an image in a message (gemfleet trains on text only)")
    raise RowError("message content that is not text", f"a {type(part).__name__}")

"""Chats through a template in Jinja: the model's own, or one that the configuration brings.

transformers renders it, in its sandbox. What is supervised comes from the template's `{% generation %}` marks. Where it
has none, an answer is what it adds to the text that asks for an answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from ...config.sections.data import DataConfig
from ...config.sections.data_format import TrainOn
from ...errors import UserError, first_line
from ..shapes.conversation import Conversation, Message, Part, RowError
from .masks import INEXACT, Rendered, Span, encode_rendered
from .segments import Encoded

MARKS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
FIELD = "train.data.chat_template"
ANSWERS = ("alpha", "gamma")  # of the probes


class ChatTemplate:
    """Renders conversations with a tokenizer's own template or another, and tokenises the result."""

    def __init__(self, tokenizer: Any, chosen: str) -> None:
        """chosen: `tokenizer`, or a template. Raises UserError if it is no template."""
        self._tokenizer, self._chosen = tokenizer, chosen
        self._controls = _controls(tokenizer, chosen)
        self._spaced: dict[str, bool] = {}  # by template
        if chosen == "tokenizer":
            _refuse_missing(tokenizer.chat_template)

    def render(self, conversation: Conversation) -> Rendered:
        """The conversation with its spans. Raises RowError if the template refuses it or hides where answers are."""
        messages, tools = [_as_dict(message) for message in conversation.messages], list(conversation.tools)
        self._refuse_special(messages, tools)
        self._refuse_unwritten(messages, tools)
        text, marks = self._text(messages, tools)
        for message in conversation.messages:
            _refuse_dropped(message, text)
        if conversation.whole:
            return Rendered(text, None)
        answers = [i for i, message in enumerate(conversation.messages) if message.supervised]
        if self.has_marks(tools):
            return _marked(conversation.messages, text, marks)
        spans = tuple(self._compared(text, messages, tools, index) for index in answers)
        for index, span in zip(answers, spans, strict=True):
            _refuse_elsewhere(conversation.messages[index], text[span.start : span.reach])
        return Rendered(text, spans)

    def encode(self, rows: Sequence[Rendered]) -> list[Encoded | RowError]:
        """See `encode_rendered`."""
        return encode_rendered(rows, self._tokenizer)

    def has_marks(self, tools: Sequence[Any] = ()) -> bool:
        """Whether the template says itself where answers are."""
        return bool(MARKS.search(self._template(list(tools))))

    def _template(self, tools: list[Any]) -> str:
        if self._chosen != "tokenizer":
            return self._chosen
        return str(self._tokenizer.get_chat_template(tools=tools or None))

    def _text(
        self, messages: list[dict[str, Any]], tools: list[Any], asks: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        """What the template writes, and its `{% generation %}` marks. asks: with the beginning of an answer"""
        from transformers.utils.chat_template_utils import render_jinja_template  # slow to import

        template = self._template(tools)
        try:
            texts, marks = render_jinja_template(
                conversations=[messages],
                tools=tools or None,
                chat_template=template,
                return_assistant_tokens_mask=bool(MARKS.search(template)),
                add_generation_prompt=asks,
                **self._tokenizer.special_tokens_map,
            )
        except Exception as error:  # a template may raise anything
            raise RowError("a conversation that the chat template refuses", first_line(error)) from error
        return texts[0], marks[0] if marks else []

    def _compared(self, text: str, messages: list[dict[str, Any]], tools: list[Any], index: int) -> Span:
        """The span of one answer, by what comes before it and what it ends."""
        before = self._text(messages[:index], tools, asks=True)[0]
        after = self._text(messages[: index + 1], tools)[0]
        if not after.startswith(before) or not text.startswith(after):
            raise RowError(INEXACT, f"the template writes message {index + 1} in another way when more follows")
        end = len(after) if self._ends_in_space(tools) else max(len(before), len(after.rstrip()))
        return Span(len(before), end, len(after))

    def _ends_in_space(self, tools: list[Any]) -> bool:
        """Whether nothing but white space ends an answer, so that it is supervised."""
        template = self._template(tools)
        if template not in self._spaced:
            question = {"role": "user", "content": "beta"}
            text = self._text([question, {"role": "assistant", "content": ANSWERS[0]}], tools)[0]
            self._spaced[template] = text.rstrip().endswith(ANSWERS[0])
        return self._spaced[template]

    def _refuse_special(self, messages: list[dict[str, Any]], tools: list[Any]) -> None:
        if found := self._controls.search(json.dumps([messages, tools], ensure_ascii=False, default=str)):
            raise RowError("text that spells a special token, which the template cannot tell from its own", found[0])

    def _refuse_unwritten(self, messages: list[dict[str, Any]], tools: list[Any]) -> None:
        """Raises RowError for tools in a template that never looks at them, and would drop them without a word."""
        template = self._template(tools)
        used = {"tools": tools, "tool_calls": any("tool_calls" in message for message in messages)}
        if dropped := next((name for name, there in used.items() if there and name not in template), None):
            raise RowError(f"{dropped} that the chat template does not write")

    def answer_end(self) -> str:
        """See `answer_end`."""
        rendered = self.render(Conversation(tuple(_probe(1, None))))
        (span,) = rendered.spans or (Span(0, 0, 0),)
        return rendered.text[span.start : span.end].partition(ANSWERS[0])[2]


def custom_template(tokenizer: Any, data: DataConfig, train_on: TrainOn | None) -> ChatTemplate | None:
    """The template that writes chats in place of Gemma's turns, after it has been tried; None if there is none.

    Raises UserError if it cannot be trained with.
    """
    if data.chat_template == "gemma":
        return None
    template = ChatTemplate(tokenizer, data.chat_template)
    check_template(template, train_on)
    return template


def answer_end(tokenizer: Any, chosen: str) -> str:
    """The text that ends an answer in a template that is not Gemma's turns; else, and if nothing does, empty.

    chosen: `train.data.chat_template`
    """
    if chosen == "gemma":
        return ""
    end = ChatTemplate(tokenizer, chosen).answer_end()
    return end.strip() or end


def template_with_bos(tokenizer: Any, chosen: str) -> str:
    """A template that gives the ids of the training by itself, with `<bos>` in front. chosen: see `answer_end`"""
    text = ChatTemplate(tokenizer, chosen).render(Conversation(tuple(_probe(1, None)))).text
    template = str(tokenizer.get_chat_template()) if chosen == "tokenizer" else chosen
    return template if text.startswith(tokenizer.bos_token) else "{{- bos_token }}" + template


def check_template(template: ChatTemplate, train_on: TrainOn | None) -> None:
    """Tries the template on two short conversations. UserError: it refuses them, or hides where answers are."""
    for turns in (1, 2):
        messages = list(_probe(turns, train_on))
        try:
            (encoded,) = template.encode([template.render(Conversation(tuple(messages)))])
            if isinstance(encoded, RowError):
                raise encoded
        except RowError as error:
            remedy = _remedy(template, error, train_on)
            raise UserError(
                f"{FIELD} cannot be trained with: {error.reason} ({error.detail}); {remedy}, or set it to gemma"
            ) from error


def _remedy(template: ChatTemplate, error: RowError, train_on: TrainOn | None) -> str:
    if error.reason != INEXACT:
        return "correct it"
    if template.has_marks():
        return "let its {% generation %} marks hold each answer with its end, and nothing else"
    last = ", or set train.data.train_on: last" if train_on in (None, "all") else ""
    return "mark answers in it by {% generation %}" + last


def _probe(turns: int, train_on: TrainOn | None) -> Iterator[Message]:
    for number in range(turns):
        yield Message("user", "beta delta", 2 * number + 1)
        learned = train_on in (None, "all") or number == turns - 1
        yield Message("assistant", ANSWERS[number], 2 * number + 2, supervised=learned)


def _marked(said: Sequence[Message], text: str, marks: Sequence[tuple[int, int]]) -> Rendered:
    answers = [message for message in said if message.role == "assistant"]
    if len(marks) != len(answers):
        raise RowError(INEXACT, f"{len(marks)} generation marks for {len(answers)} answers")
    pairs = list(zip(answers, marks, strict=True))
    for message, (start, end) in pairs:
        _refuse_elsewhere(message, text[start:end])
    return Rendered(text, tuple(Span(start, end, end) for message, (start, end) in pairs if message.supervised))


def _refuse_missing(found: str | dict[str, str] | None) -> None:
    """Raises UserError for a tokenizer without a template for chats. It may have several by name."""
    if not found or (isinstance(found, dict) and "default" not in found):
        named = f" named 'default' (it has {', '.join(map(repr, found))})" if found else ""
        raise UserError(
            f"{FIELD} is tokenizer, but the model's tokenizer has no chat template{named}; set it to gemma, or to a "
            "Jinja file"
        )


def _refuse_dropped(message: Message, text: str) -> None:
    """Raises RowError if a template writes nothing of a message that is no answer. Some write results as JSON texts."""
    parts = [] if message.role == "assistant" else [part.strip() for part in message.texts]
    if any(part not in text and json.dumps(part, ensure_ascii=False)[1:-1] not in text for part in parts):
        raise RowError("text that the chat template does not write", f"message {message.number} is {message.role!r}")


def _refuse_elsewhere(message: Message, text: str) -> None:
    """Raises RowError if the text of an answer does not hold the message."""
    words = [*message.texts, *(call.name for call in message.calls)]
    if any(word.strip() not in text for word in words):
        raise RowError(INEXACT, f"message {message.number} is not in the text of its answer")


def _controls(tokenizer: Any, chosen: str) -> re.Pattern[str]:
    """The tokens that a message must not spell: special ones, and added ones that the template writes itself."""
    template = str(tokenizer.chat_template) if chosen == "tokenizer" else chosen
    written = {token for token in tokenizer.added_tokens_encoder if token in template and not re.search(r"\s", token)}
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    found = sorted(special.union(written, tokenizer.all_special_tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, found)))


def _as_part(part: Part) -> dict[str, str]:
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}


def _as_dict(message: Message) -> dict[str, Any]:
    """A message as transformers takes it: keys without a value are left out.

    Arguments are objects, as its documentation has them. Most templates would write OpenAI's text of them as a string.
    """
    content = message.content
    found: dict[str, Any] = {
        "role": message.role,
        "content": content if isinstance(content, str) else list(map(_as_part, content)),
        "tool_calls": [
            {"type": "function", "function": {"name": call.name, "arguments": call.parameters()}}
            | ({"id": call.id} if call.id else {})
            for call in message.calls
        ],
        "name": message.name,
        "tool_call_id": message.call_id,
    }
    if message.calls and not message.content:
        del found["content"]
    return {key: value for key, value in found.items() if value or key in ("role", "content")}

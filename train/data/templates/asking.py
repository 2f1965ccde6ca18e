"""Writes a question as the training wrote its examples, up to where the answer begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import UserError
from ..shapes.conversation import Conversation, Message, RowError
from .gemma import TURN_END, TURN_START, chat_segments, with_soft_tokens
from .rendered import ChatTemplate
from .segments import Encoded, Segment, SegmentEncoder

ANSWER = "alpha"  # in place of the answer, so that the tokens before it are those of the training


class Asking:
    """The token ids of prompts, for one tokenizer.

    template: `train.data.chat_template` of a run on chats; None: prompts are texts without turns
    ending:   white space with which such a text ends
    picture:  the ids of a picture, see `PictureFormat.tokens`; none: there are no pictures
    """

    def __init__(self, tokenizer: Any, template: str | None, ending: str = "", picture: Sequence[int] = ()) -> None:
        """Raises UserError for a chat template that cannot be used."""
        self.turns, self._ending, self._bos = template is not None, ending, str(tokenizer.bos_token)
        marks = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, TURN_START, TURN_END]
        self._segments = SegmentEncoder(tokenizer, int(tokenizer.bos_token_id), marks, picture)
        self._tokenizer, self._picture = tokenizer, picture
        self._template = None if template in (None, "gemma") else ChatTemplate(tokenizer, str(template))

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a conversation that ends with a question, with `<bos>`. Without turns, of its last message.

        Raises UserError for messages that the format cannot write.
        """
        try:
            encoded = self._encoded(messages)
            if isinstance(encoded, RowError):
                raise encoded
        except RowError as error:
            detail = f" ({error.detail})" if error.detail else ""
            raise UserError(f"the question cannot be written as in training: {error.reason}{detail}") from error
        tokens, supervised = encoded
        return tokens[: supervised.index(True)]

    def _encoded(self, messages: Sequence[Message]) -> Encoded | RowError:
        said = Conversation((*messages, Message("assistant", ANSWER, len(messages) + 1, supervised=True)))
        if self._template is not None:
            rendered = self._template.render(said)
            if said.pictures:
                rendered = with_soft_tokens(rendered, self._tokenizer, self._picture, len(said.pictures))
            return self._template.encode([rendered])[0]
        if self.turns:
            return self._segments.encode([chat_segments(said)])[0]
        if said.pictures:
            raise RowError("a picture in a prompt without turns, as the training had them")
        text = "".join(messages[-1].texts).removeprefix(self._bos)
        prompt = text if text.endswith(self._ending) else text + self._ending
        return self._segments.encode([[Segment(prompt), Segment(ANSWER, supervised=True)]])[0]

"""Makes token blocks of rows: which columns are read, which tokens are supervised, why a row is left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..config.sections.data import DataSet
from ..errors import UserError
from .packing import TokenBlock
from .rows import BadRow, Row
from .shapes.choice import CHATS, choose_format, used_columns
from .shapes.conversation import Conversation, RowError
from .shapes.row_reader import RowReader
from .templates.gemma import TURN_END, TURN_START, chat_segments
from .templates.masks import Rendered
from .templates.rendered import ChatTemplate, custom_template
from .templates.segments import Encoded, Segment, SegmentEncoder
from .text_only import refuse_media
from .unheard import refuse_unheard, without_ignored

__all__ = ["Encoder", "LeftOut", "Tokenised", "choose_format", "tokenize_rows"]

Prepared = list[Segment] | Rendered


@dataclass(frozen=True)
class LeftOut:
    """A row that no step trains on. Like faults share one `reason`, so they can be counted."""

    name: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Tokenised:
    """What a batch of rows became. unused: columns, and keys of messages, that hold a value nobody read."""

    block: TokenBlock
    left_out: list[LeftOut]
    truncated: int
    unused: frozenset[str] = frozenset()


class Encoder:
    """Turns the rows of one data set into ids and supervision, for one tokenizer."""

    def __init__(
        self, tokenizer: Any, data: DataSet, columns: Iterable[str], embedding_rows: int | None = None
    ) -> None:
        """Raises UserError if the columns do not fit the format, a token is missing, or the chat template fails.

        columns: those that the data set has
        embedding_rows: of the model; a data row with a token beyond them is left out. None: not known
        """
        self.data = data
        self.embedding_rows = embedding_rows
        self.format = choose_format(data, columns)
        self.used = used_columns(data, self.format)
        self._tokenizer = tokenizer
        bos = _required_id(tokenizer, "bos_token")
        _required_id(tokenizer, "eos_token")
        marks = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, TURN_START, TURN_END]
        self._reader = RowReader(data, self.format, tokenizer.bos_token, tokenizer.eos_token)
        self._segments = SegmentEncoder(tokenizer, bos, marks)
        if self.format in CHATS:
            _ = self._template

    @cached_property
    def _template(self) -> ChatTemplate | None:
        """What writes the chats; None: Gemma's turns."""
        return custom_template(self._tokenizer, self.data.section, self.data.train_on)

    def prepare(self, values: dict[str, Any]) -> Prepared:
        """One row, ready to be tokenised. Raises RowError if it cannot be used."""
        found = self._reader.read(values)
        if isinstance(found, Conversation):
            return chat_segments(found) if self._template is None else self._template.render(found)
        end = [Segment(self._tokenizer.eos_token, supervised=True, control=True)] if self.data.section.add_eos else []
        prompt = [Segment(found.prompt, supervised=found.whole)] if found.prompt else []
        return [*prompt, Segment(found.text, supervised=True), *end]

    def encode(self, rows: Sequence[Prepared]) -> list[Encoded | RowError]:
        """The ids and supervision of each row, with `<bos>`; a RowError for one that has no exact answer."""
        rendered = [row for row in rows if isinstance(row, Rendered)]
        from_template = iter(self._template.encode(rendered) if self._template and rendered else [])
        from_segments = iter(self._segments.encode([row for row in rows if not isinstance(row, Rendered)]))
        return [next(from_template if isinstance(row, Rendered) else from_segments) for row in rows]

    def beyond_embedding(self, tokens: Sequence[int]) -> str:
        """The first token without a row in the model's embedding, as in `'<tool>' is 316`; else empty."""
        rows = self.embedding_rows
        if rows is None or max(tokens) < rows:
            return ""
        first = next(token for token in tokens if token >= rows)
        return f"{self._tokenizer.convert_ids_to_tokens(first)!r} is {first}"


def tokenize_rows(rows: Iterable[Row | BadRow], encoder: Encoder | None) -> Tokenised:
    """Tokenises a batch of rows. Rows that cannot be used are returned with name and reason.

    `encoder` is None only for a data set without any readable row, which thus has no columns. Raises UserError for an
    image, and for a column that would change what is trained on: the data set is of another kind.
    """
    good: list[tuple[str, Prepared]] = []
    left_out: list[LeftOut] = []
    unused: set[str] = set()
    for row in rows:
        if isinstance(row, BadRow):
            left_out.append(LeftOut(row.name, row.reason, row.detail))
            continue
        assert encoder is not None
        heard = without_ignored(row, encoder.data)
        refuse_media(heard, encoder.data)
        unused |= refuse_unheard(heard, encoder.data, encoder.format)
        try:
            good.append((row.name, encoder.prepare(heard.values)))
        except RowError as error:
            left_out.append(LeftOut(row.name, error.reason, error.detail))
    if encoder is None:
        return Tokenised(TokenBlock.concatenate([]), left_out, 0)
    kept: list[Encoded] = []
    truncated = 0
    for (name, _), encoded in zip(good, encoder.encode([prepared for _, prepared in good]), strict=True):
        verdict = _judge(name, encoded, encoder)
        if isinstance(verdict, LeftOut):
            left_out.append(verdict)
        else:
            truncated += not isinstance(encoded, RowError) and len(encoded[0]) > len(verdict[0])
            kept.append(verdict)
    return Tokenised(_block(kept), left_out, truncated, frozenset(unused))


def _judge(name: str, encoded: Encoded | RowError, encoder: Encoder) -> Encoded | LeftOut:
    if isinstance(encoded, RowError):
        return LeftOut(name, encoded.reason, encoded.detail)
    tokens, supervised = encoded
    data = encoder.data.section
    if beyond := encoder.beyond_embedding(tokens):
        return LeftOut(name, f"a token beyond the model's embedding of {encoder.embedding_rows} rows", beyond)
    if len(tokens) > data.max_length:
        if data.too_long == "skip":
            return LeftOut(name, f"longer than max_length {data.max_length}", f"{len(tokens)} tokens")
        tokens, supervised = tokens[: data.max_length], supervised[: data.max_length]
    if not any(supervised):
        cut = len(encoded[0]) > len(tokens)
        return LeftOut(name, "nothing supervised" + (f" within max_length {data.max_length}" if cut else ""))
    return tokens, supervised


def _block(examples: list[Encoded]) -> TokenBlock:
    return TokenBlock.concatenate(
        [
            TokenBlock(np.array(tokens, np.int32), np.array(supervised, np.bool_), np.array([0, len(tokens)], np.int64))
            for tokens, supervised in examples
        ]
    )


def _required_id(tokenizer: Any, name: str) -> int:
    number = getattr(tokenizer, f"{name}_id")
    if number is None:
        raise UserError(f"the model's tokenizer has no {name}; use the tokenizer that belongs to the Gemma 3 model")
    return int(number)

"""Makes token blocks of rows: which columns are read, which tokens are supervised, why a row is left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..config.sections.data import DataSet
from ..errors import UserError
from ..interfaces import Pixels
from .packing import TokenBlock
from .pictures.format import PictureFormat
from .pictures.pixel_file import picture_id
from .pictures.resize import resized
from .rows import BadRow, Row
from .shapes.choice import CHATS, choose_format, used_columns
from .shapes.conversation import Conversation, Picture, RowError
from .shapes.row_reader import RowReader
from .templates.gemma import TURN_END, TURN_START, chat_segments, with_soft_tokens
from .templates.masks import Rendered
from .templates.rendered import ChatTemplate, custom_template
from .templates.segments import Encoded, Segment, SegmentEncoder
from .text_only import refuse_media
from .unheard import refuse_unheard, without_ignored

__all__ = ["Encoder", "LeftOut", "Tokenised", "choose_format", "tokenize_rows"]


@dataclass(frozen=True)
class LeftOut:
    """A row that no step trains on. Like faults share one `reason`, so they can be counted."""

    name: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Tokenised:
    """What a batch of rows became.

    unused: columns, and keys of messages, that hold a value nobody read
    pixels: by its id, each picture of the block once
    """

    block: TokenBlock
    left_out: list[LeftOut]
    truncated: int
    unused: frozenset[str] = frozenset()
    pixels: dict[int, Pixels] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """A row that is ready to be tokenised."""

    name: str
    text: list[Segment] | Rendered
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class _Example:
    """tokens, supervised: see `Encoded`; pictures: those left; starts: the token at which each of them begins"""

    tokens: list[int]
    supervised: list[bool]
    pictures: tuple[Picture, ...]
    starts: list[int]


class Encoder:
    """Turns the rows of one data set into ids and supervision, for one tokenizer."""

    def __init__(
        self,
        tokenizer: Any,
        data: DataSet,
        columns: Iterable[str],
        embedding_rows: int | None = None,
        pictures: PictureFormat | None = None,
    ) -> None:
        """Raises UserError if the columns do not fit the format, a token is missing, or the chat template fails.

        columns: those that the data set has
        embedding_rows: of the model; a data row with a token beyond them is left out. None: not known
        pictures: as the model sees them; None: it does not
        """
        self.data = data
        self.embedding_rows = embedding_rows
        self.pictures = pictures
        self.format = choose_format(data, columns)
        self.used = used_columns(data, self.format)
        self._tokenizer = tokenizer
        bos = _required_id(tokenizer, "bos_token")
        _required_id(tokenizer, "eos_token")
        marks = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, TURN_START, TURN_END]
        self._reader = RowReader(data, self.format, tokenizer.bos_token, tokenizer.eos_token)
        self._segments = SegmentEncoder(tokenizer, bos, marks, pictures.tokens if pictures else ())
        if self.format in CHATS:
            _ = self._template

    @cached_property
    def _template(self) -> ChatTemplate | None:
        """What writes the chats; None: Gemma's turns."""
        return custom_template(self._tokenizer, self.data.section, self.data.train_on)

    def prepare(self, row: Row) -> Prepared:
        """One row, ready to be tokenised. Raises RowError if it cannot be used, and UserError if no picture can."""
        found = self._reader.read(row.values)
        if isinstance(found, Conversation):
            pictures = found.pictures
            if pictures and self.pictures and self.pictures.refusal:
                raise UserError(self.pictures.refusal)
            if self._template is None:
                return Prepared(row.name, chat_segments(found), pictures)
            rendered = self._template.render(found)
            if self.pictures is not None and pictures:
                rendered = with_soft_tokens(rendered, self._tokenizer, self.pictures.tokens, len(pictures))
            return Prepared(row.name, rendered, pictures)
        end = [Segment(self._tokenizer.eos_token, supervised=True, control=True)] if self.data.section.add_eos else []
        prompt = [Segment(found.prompt, supervised=found.whole)] if found.prompt else []
        return Prepared(row.name, [*prompt, Segment(found.text, supervised=True), *end])

    def encode(self, rows: Sequence[Prepared]) -> list[Encoded | RowError]:
        """The ids and supervision of each row, with `<bos>`; a RowError for one that has no exact answer."""
        texts = [row.text for row in rows]
        rendered = [text for text in texts if isinstance(text, Rendered)]
        from_template = iter(self._template.encode(rendered) if self._template and rendered else [])
        from_segments = iter(self._segments.encode([text for text in texts if not isinstance(text, Rendered)]))
        return [next(from_template if isinstance(text, Rendered) else from_segments) for text in texts]

    def example(self, row: Prepared, encoded: Encoded) -> _Example:
        """The encoded row with its pictures, whose tokens are never supervised. Raises RowError if one was not written.

        Only places of pictures have their tokens: what a text spells stays text, or the row is left out.
        """
        tokens, supervised = encoded
        if not row.pictures:
            return _Example(tokens, supervised, (), [])
        assert self.pictures is not None
        starts = [at + 1 for at, token in enumerate(tokens) if token == self.pictures.begin]
        whole, said = self.pictures.tokens, list(supervised)
        for start in starts:
            said[start - 1 : start - 1 + len(whole)] = [False] * len(whole)
        if len(starts) != len(row.pictures) or any(tokens[s - 1 : s - 1 + len(whole)] != whole for s in starts):
            raise RowError("pictures that the tokenizer does not write", f"{len(starts)} of {len(row.pictures)}")
        return _Example(tokens, said, row.pictures, starts)

    def beyond_embedding(self, tokens: Sequence[int]) -> str:
        """The first token without a row in the model's embedding, as in `'<tool>' is 316`; else empty."""
        rows = self.embedding_rows
        if rows is None or max(tokens) < rows:
            return ""
        first = next(token for token in tokens if token >= rows)
        return f"{self._tokenizer.convert_ids_to_tokens(first)!r} is {first}"


def tokenize_rows(rows: Iterable[Row | BadRow], encoder: Encoder | None) -> Tokenised:
    """Tokenises a batch of rows. Rows that cannot be used are returned with name and reason.

    `encoder` is None only for a data set without any readable row, which thus has no columns. Raises UserError for
    media that the model does not take, and for a column that would change what is trained on.
    """
    good: list[Prepared] = []
    left_out: list[LeftOut] = []
    unused: set[str] = set()
    for row in rows:
        if isinstance(row, BadRow):
            left_out.append(LeftOut(row.name, row.reason, row.detail))
            continue
        assert encoder is not None
        heard = without_ignored(row, encoder.data)
        refuse_media(heard, encoder.data, encoder.pictures is not None)
        unused |= refuse_unheard(heard, encoder.data, encoder.format)
        try:
            good.append(encoder.prepare(heard))
        except RowError as error:
            left_out.append(LeftOut(row.name, error.reason, error.detail))
    kept = _Kept()
    for prepared, encoded in zip(good, encoder.encode(good) if encoder else [], strict=True):
        assert encoder is not None
        try:
            kept.add(prepared, encoded, encoder)
        except RowError as error:
            left_out.append(LeftOut(prepared.name, error.reason, error.detail))
    return Tokenised(TokenBlock.concatenate(kept.blocks), left_out, kept.truncated, frozenset(unused), kept.pixels)


class _Kept:
    """The usable examples of a batch."""

    def __init__(self) -> None:
        self.blocks: list[TokenBlock] = []
        self.truncated = 0
        self.pixels: dict[int, Pixels] = {}

    def add(self, row: Prepared, encoded: Encoded | RowError, encoder: Encoder) -> None:
        """Adds an example. Raises RowError if it cannot be used."""
        if isinstance(encoded, RowError):
            raise encoded
        found = _fitted(encoder.example(row, encoded), encoder)
        most = encoder.data.section.pictures.most_pixels
        pixels = [resized(one, encoder.pictures, most) for one in found.pictures if encoder.pictures]
        ids = [picture_id(one) for one in pixels]
        self.pixels.update(zip(ids, pixels, strict=True))
        self.truncated += len(found.tokens) < len(encoded[0])
        self.blocks.append(
            TokenBlock(
                np.array(found.tokens, np.int32),
                np.array(found.supervised, np.bool_),
                np.array([0, len(found.tokens)], np.int64),
                np.array(ids, np.int64),
                np.array(found.starts, np.int64),
            )
        )


def _fitted(example: _Example, encoder: Encoder) -> _Example:
    """The example, cut off if it is too long and may be. A picture is cut off as a whole. Raises RowError."""
    data, tokens = encoder.data.section, example.tokens
    if beyond := encoder.beyond_embedding(tokens):
        raise RowError(f"a token beyond the model's embedding of {encoder.embedding_rows} rows", beyond)
    end = min(len(tokens), data.max_length)
    if end < len(tokens) and data.too_long == "skip":
        raise RowError(f"longer than max_length {data.max_length}", f"{len(tokens)} tokens")
    size = len(encoder.pictures.tokens) - 1 if encoder.pictures else 0
    end = min([end, *(start - 1 for start in example.starts if start + size > end)])
    kept = sum(start < end for start in example.starts)
    if not any(example.supervised[:end]):
        cut = f" within max_length {data.max_length}" if end < len(tokens) else ""
        raise RowError(f"nothing supervised{cut}")
    return _Example(tokens[:end], example.supervised[:end], example.pictures[:kept], example.starts[:kept])


def _required_id(tokenizer: Any, name: str) -> int:
    number = getattr(tokenizer, f"{name}_id")
    if number is None:
        raise UserError(f"the model's tokenizer has no {name}; use the tokenizer that belongs to the Gemma 3 model")
    return int(number)

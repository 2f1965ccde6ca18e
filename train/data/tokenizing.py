"""Makes token blocks of rows: which columns are read, which tokens are supervised, why a row is left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np

from ..config.data_section import DataSet
from ..errors import UserError
from .chat import TURN_END, TURN_START, RowError, Segment, chat_segments
from .packing import TokenBlock
from .rows import BadRow, Row
from .text_only import refuse_media
from .unheard import refuse_unheard

RowFormat = Literal["text", "prompt_completion", "messages"]


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


def choose_format(data: DataSet, columns: Iterable[str]) -> RowFormat:
    """The format of a data set with these columns. UserError names the missing column and those that are there."""
    names, needed = data.columns, columns_by_format(data)
    there = sorted(set(columns))
    listed = ", ".join(repr(name) for name in there) or "none"
    if data.format != "auto":
        missing = [name for name in needed[data.format] if name not in there]
        if missing:
            raise UserError(
                f"{data.settings}.format is {data.format}, but {data.path} has no column {missing[0]!r}; "
                f"its columns are {listed}; name the right one in {data.settings}.columns"
            )
        return data.format
    for row_format, wanted in needed.items():
        if all(name in there for name in wanted):
            return row_format
    raise UserError(
        f"{data.path} has none of the columns {names.messages!r}, {names.prompt!r} with {names.completion!r}, or "
        f"{names.text!r}; its columns are {listed}; name the right ones in {data.settings}.columns"
    )


def columns_by_format(data: DataSet) -> dict[RowFormat, tuple[str, ...]]:
    """The columns that each format reads. `auto` tries the formats in this order."""
    names = data.columns
    return {
        "messages": (names.messages,),
        "prompt_completion": (names.prompt, names.completion),
        "text": (names.text,),
    }


class Encoder:
    """Turns the rows of one data set into ids and supervision, for one tokenizer."""

    def __init__(
        self, tokenizer: Any, data: DataSet, columns: Iterable[str], embedding_rows: int | None = None
    ) -> None:
        """Raises UserError if the columns do not fit the format, or the tokenizer lacks a token.

        columns: those that the data set has
        embedding_rows: of the model; a data row with a token beyond them is left out. None: not known
        """
        self.data = data
        self.embedding_rows = embedding_rows
        self.format = choose_format(data, columns)
        self.used = columns_by_format(data)[self.format]
        self._tokenizer = tokenizer
        self._bos = _required_id(tokenizer, "bos_token")
        self._eos = _required_id(tokenizer, "eos_token")
        marks = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, TURN_START, TURN_END]
        self._controls = set(tokenizer.convert_tokens_to_ids([m for m in marks if m])) - {tokenizer.unk_token_id}
        self._ids = cache(self._ids_uncached)

    def segments(self, values: dict[str, Any]) -> list[Segment]:
        """The segments of one row after `<bos>`. Raises RowError if the row cannot be used."""
        names = self.data.columns
        if self.format == "messages":
            return chat_segments(_field(values, names.messages))
        if self.format == "text":
            return self._supervised_text(values, names.text)
        prompt = _field(values, names.prompt)
        if isinstance(prompt, list):
            completion = _field(values, names.completion)
            answer = completion if isinstance(completion, list) else [{"role": "assistant", "content": completion}]
            return chat_segments([*prompt, *answer], supervise_from=len(prompt))
        completion = self._supervised_text(values, names.completion)
        return [Segment(self._text(values, names.prompt)), *completion]

    def encode(self, rows: Sequence[list[Segment]]) -> list[tuple[list[int], list[bool]] | RowError]:
        """The ids and supervision of each row, with `<bos>`; a RowError for plain text that became a control token."""
        plain = [segment for row in rows for segment in row if not segment.control]
        ids = iter(self._encode_batch(plain))
        return [self._assemble([[] if s.control else next(ids) for s in row], row) for row in rows]

    def _assemble(self, ids: list[list[int]], row: list[Segment]) -> tuple[list[int], list[bool]] | RowError:
        tokens, supervised = [self._bos], [False]
        for segment, piece in zip(row, ids, strict=True):
            if segment.control:
                piece = [self._control(segment.text)]
            header = self._header_length(segment, piece)
            if header is None:
                piece = self._ids(segment.header) + self._encode_batch([Segment(segment.text, literal=True)])[0]
                header = len(self._ids(segment.header))
            if segment.literal and not self._controls.isdisjoint(piece):
                return RowError("text that spells a control token, which this tokenizer cannot take as plain text")
            tokens += piece
            supervised += [False] * header + [segment.supervised] * (len(piece) - header)
        return tokens, supervised

    def _header_length(self, segment: Segment, ids: list[int]) -> int | None:
        """How many of the segment's ids are its header; None if a token goes across the header's end."""
        if not segment.header:
            return 0
        header = self._ids(segment.header)
        return len(header) if ids[: len(header)] == header else None

    def _encode_batch(self, segments: Sequence[Segment]) -> list[list[int]]:
        """The ids of all segments, by one tokenizer call for the literal ones and one for the others."""
        result: list[list[int]] = [[] for _ in segments]
        for literal in (False, True):
            chosen = [i for i, s in enumerate(segments) if s.literal == literal and s.header + s.text]
            if chosen:
                texts = [segments[i].header + segments[i].text for i in chosen]
                for i, ids in zip(chosen, self._call(texts, literal), strict=True):
                    result[i] = ids
        return result

    def _call(self, texts: list[str], literal: bool) -> list[list[int]]:
        encoded = self._tokenizer(
            texts, add_special_tokens=False, split_special_tokens=literal, return_attention_mask=False
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _ids_uncached(self, text: str) -> list[int]:
        return self._call([text], literal=True)[0]

    def _control(self, token: str) -> int:
        number = self._tokenizer.convert_tokens_to_ids(token)
        if number is None or number == self._tokenizer.unk_token_id:
            raise UserError(
                f"the tokenizer has no token {token!r}, which chat data needs; use Gemma's own or another data format"
            )
        return int(number)

    def beyond_embedding(self, tokens: Sequence[int]) -> str:
        """The first token without a row in the model's embedding, as in `'<tool>' is 316`; else empty."""
        rows = self.embedding_rows
        if rows is None or max(tokens) < rows:
            return ""
        first = next(token for token in tokens if token >= rows)
        return f"{self._tokenizer.convert_ids_to_tokens(first)!r} is {first}"

    def _text(self, values: dict[str, Any], name: str) -> str:
        """A text field without a leading `<bos>`, since every example gets one."""
        text = _field(values, name)
        if not isinstance(text, str):
            raise RowError(f"{name} is not text", f"a {type(text).__name__}")
        while text.startswith(self._tokenizer.bos_token):
            text = text.removeprefix(self._tokenizer.bos_token)
        if not text:
            raise RowError(f"{name} is empty")
        return str(text)

    def _supervised_text(self, values: dict[str, Any], name: str) -> list[Segment]:
        """A text field and its end. A trailing `<eos>` is dropped if every example gets one."""
        text, eos = self._text(values, name), self._tokenizer.eos_token
        while self.data.section.add_eos and text.rstrip().endswith(eos):
            text = text.rstrip().removesuffix(eos)
        if not text:
            raise RowError(f"{name} is empty")
        return [Segment(text, supervised=True), *self._end()]

    def _end(self) -> list[Segment]:
        return [Segment(self._tokenizer.eos_token, supervised=True, control=True)] if self.data.section.add_eos else []


def tokenize_rows(rows: Iterable[Row | BadRow], encoder: Encoder | None) -> Tokenised:
    """Tokenises a batch of rows. Rows that cannot be used are returned with name and reason.

    `encoder` is None only for a data set without any readable row, which thus has no columns. Raises UserError for an
    image, and for a column that would change what is trained on: the data set is of another kind.
    """
    good: list[tuple[str, list[Segment]]] = []
    left_out: list[LeftOut] = []
    unused: set[str] = set()
    for row in rows:
        if isinstance(row, BadRow):
            left_out.append(LeftOut(row.name, row.reason, row.detail))
            continue
        assert encoder is not None
        refuse_media(row, encoder.data)
        unused |= refuse_unheard(row, encoder.data, encoder.used)
        try:
            good.append((row.name, encoder.segments(row.values)))
        except RowError as error:
            left_out.append(LeftOut(row.name, error.reason, error.detail))
    if encoder is None:
        return Tokenised(TokenBlock.concatenate([]), left_out, 0)
    kept: list[tuple[list[int], list[bool]]] = []
    truncated = 0
    for (name, _), encoded in zip(good, encoder.encode([segments for _, segments in good]), strict=True):
        verdict = _judge(name, encoded, encoder)
        if isinstance(verdict, LeftOut):
            left_out.append(verdict)
        else:
            truncated += not isinstance(encoded, RowError) and len(encoded[0]) > len(verdict[0])
            kept.append(verdict)
    return Tokenised(_block(kept), left_out, truncated, frozenset(unused))


def _judge(
    name: str, encoded: tuple[list[int], list[bool]] | RowError, encoder: Encoder
) -> tuple[list[int], list[bool]] | LeftOut:
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


def _block(examples: list[tuple[list[int], list[bool]]]) -> TokenBlock:
    return TokenBlock.concatenate(
        [
            TokenBlock(np.array(tokens, np.int32), np.array(supervised, np.bool_), np.array([0, len(tokens)], np.int64))
            for tokens, supervised in examples
        ]
    )


def _field(values: dict[str, Any], name: str) -> Any:
    if values.get(name) is None:
        raise RowError(f"no {name}")
    return values[name]


def _required_id(tokenizer: Any, name: str) -> int:
    number = getattr(tokenizer, f"{name}_id")
    if number is None:
        raise UserError(f"the model's tokenizer has no {name}; use the tokenizer that belongs to the Gemma 3 model")
    return int(number)

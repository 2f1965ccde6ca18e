"""Tokenises segments: stretches of text with their supervision. What a person wrote cannot become a control token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ...errors import UserError
from ..shapes.conversation import RowError

Encoded = tuple[list[int], list[bool]]  # ids of one example with `<bos>`, and which of them are targets


@dataclass(frozen=True)
class Segment:
    """A stretch of text that is tokenised on its own.

    header:     text before `text` in the same tokenisation, never supervised
    supervised: whether the tokens of `text` are targets
    control:    `text` is one control token
    literal:    control tokens that `text` spells out stay plain text
    picture:    the tokens of a picture, instead of a text
    """

    text: str
    supervised: bool = False
    header: str = ""
    control: bool = False
    literal: bool = False
    picture: bool = False


class SegmentEncoder:
    """Turns segments into ids and supervision.

    marks: control tokens that a literal text must not become; picture: the ids of a picture, see `PictureFormat.tokens`
    """

    def __init__(self, tokenizer: Any, bos: int, marks: Sequence[str | None], picture: Sequence[int] = ()) -> None:
        self._tokenizer, self._bos, self._picture = tokenizer, bos, list(picture)
        self._controls = set(tokenizer.convert_tokens_to_ids([m for m in marks if m])) - {tokenizer.unk_token_id}
        self._controls.update(picture)
        self._ids = lru_cache(maxsize=1024)(self._ids_uncached)

    def encode(self, rows: Sequence[list[Segment]]) -> list[Encoded | RowError]:
        """The ids and supervision of each row, with `<bos>`; a RowError for plain text that became a control token."""
        plain = [segment for row in rows for segment in row if not segment.control]
        ids = iter(self._encode_batch(plain))
        return [self._assemble([[] if s.control else next(ids) for s in row], row) for row in rows]

    def _assemble(self, ids: list[list[int]], row: list[Segment]) -> Encoded | RowError:
        tokens, supervised = [self._bos], [False]
        for segment, piece in zip(row, ids, strict=True):
            if segment.control:
                piece = self._picture if segment.picture else [self._control(segment.text)]
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

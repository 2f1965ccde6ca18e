"""From characters to tokens: which tokens of a rendered chat are supervised."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..shapes.conversation import RowError
from .segments import Encoded

INEXACT = "answers that cannot be told apart in the chat template's text"


@dataclass(frozen=True)
class Span:
    """Characters of an answer. Its last token may reach to `reach`, over white space that ends nothing."""

    start: int
    end: int
    reach: int


@dataclass(frozen=True)
class Rendered:
    """A conversation as the template writes it. spans: what is supervised; None: all of it"""

    text: str
    spans: tuple[Span, ...] | None


def with_pictures(row: Rendered, mark: str, written: str, count: int) -> Rendered:
    """The text with `written` for each `mark`, where a picture is. Raises RowError if there are not `count` of them."""
    found = row.text.count(mark)
    if found != count:
        raise RowError("pictures that the chat template does not write", f"{found} of {count}")
    more = len(written) - len(mark)
    if not count:
        return row

    def moved(at: int) -> int:
        return at + more * row.text.count(mark, 0, at)

    spans = row.spans and tuple(Span(moved(one.start), moved(one.end), moved(one.reach)) for one in row.spans)
    return Rendered(row.text.replace(mark, written), spans)


def encode_rendered(rows: Sequence[Rendered], tokenizer: Any) -> list[Encoded | RowError]:
    """The ids and supervision of each row, with `<bos>`; a RowError where a token crosses an answer's border."""
    if not rows:
        return []
    found = tokenizer(
        [row.text for row in rows],
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
    )
    pairs = zip(rows, found["input_ids"], found["offset_mapping"], strict=True)
    return [_supervise(row, ids, offsets, int(tokenizer.bos_token_id)) for row, ids, offsets in pairs]


def _supervise(row: Rendered, ids: list[int], offsets: list[tuple[int, int]], bos: int) -> Encoded | RowError:
    missing = [] if ids and ids[0] == bos else [bos]
    if row.spans is None:
        mask = [True] * len(ids)
        if mask and not missing:
            mask[0] = False
    else:
        mask = [False] * len(ids)
        starts = [start for start, _ in offsets]
        for span in row.spans:
            first = bisect_left(starts, span.start)
            while first > 0 and offsets[first - 1][1] > span.start:
                first -= 1
            for index in range(first, bisect_left(starts, span.end)):
                start, end = offsets[index]
                if _crosses(span, start, end, row.text):
                    return RowError(INEXACT, f"one token, {row.text[start:end]!r}, crosses the border of an answer")
                mask[index] = True
    return missing + ids, [False] * len(missing) + mask


def _crosses(span: Span, start: int, end: int, text: str) -> bool:
    """Whether a token is of an answer only in part.

    A word may bring the white space before it, as tokenizers cut text, and an end mark that behind it.
    """
    before = start < span.start and (text[start : span.start].strip() or not text[span.start : end].strip())
    return bool(before) or end > span.reach

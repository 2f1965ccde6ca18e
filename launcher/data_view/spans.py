"""Turns tokens back into text for people, in stretches that are supervised or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from gemfleet.cluster.redaction import printable
from gemfleet.train.data.packing import TokenBlock
from gemfleet.train.interfaces import Pixels
from numpy.typing import NDArray

from .pictures import thumbnails
from .view import Example, Span

MOST_CHARACTERS = 20_000  # of an example


def example_of(name: str, block: TokenBlock, tokenizer: Any, pixels: Mapping[int, Pixels] | None = None) -> Example:
    """A row as the model sees it, with its control tokens. A long text loses its middle.

    A picture is one of its tokens in the text; the others, which are the same, are left out.
    block: of this one example, or of none, where the row became no tokens; pixels: of its pictures, by their ids
    """
    spans, shown = [], ~repeated(block)
    pairs = zip(block.tokens[shown].tolist(), block.supervised[shown].tolist(), strict=True)
    for flag, run in groupby(pairs, key=lambda pair: pair[1]):
        ids = [token for token, _ in run]
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        spans.append(Span(text=printable(text), supervised=flag))
    return Example(
        name=printable(name),
        tokens=len(block.tokens),
        supervised_tokens=block.supervised_tokens,
        spans=clipped(spans, MOST_CHARACTERS),
        pictures=thumbnails(pixels[identity] for identity in block.pictures.tolist()) if pixels else [],
    )


def repeated(block: TokenBlock) -> NDArray[np.bool_]:
    """Which tokens are those of a picture after its first one. bool [T]"""
    found = np.zeros(len(block.tokens), np.bool_)
    found[1:] = block.tokens[1:] == block.tokens[:-1]
    return found & np.isin(block.tokens, block.tokens[block.picture_starts])


def clipped(spans: Sequence[Span], most: int) -> list[Span]:
    """The spans with at most `most` characters, which leave out the middle. A note in its place says how many."""
    total = sum(len(span.text) for span in spans)
    if total <= most:
        return list(spans)
    head, tail = most * 3 // 4, most - most * 3 // 4
    note = Span(text=f" … {total - most:,} characters … ", supervised=False)
    return [*_between(spans, 0, head), note, *_between(spans, total - tail, total)]


def _between(spans: Sequence[Span], start: int, end: int) -> list[Span]:
    kept, at = [], 0
    for span in spans:
        text = span.text[max(0, start - at) : max(0, end - at)]
        at += len(span.text)
        if text:
            kept.append(Span(text=text, supervised=span.supervised))
    return kept

"""Turns the tokens of an answer, as they come, into text that a terminal may show at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from typing import Any

from gemfleet.cluster.redaction import printable

INCOMPLETE = "\ufffd"  # what bytes become that are no character, perhaps not yet


class TextOfTokens:
    """What transformers' `generate` takes for a streamer. To iterate over it gives the text in pieces."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._ids, self._shown = tokenizer, list[int](), 0
        self._prompt_came = False
        self._queue = SimpleQueue[str | None]()

    def put(self, value: Any) -> None:
        """Take the prompt, which is left out, and then the new tokens one by one."""
        if self._prompt_came:
            self._ids += value.flatten().tolist()
            self._send(self._text().rstrip(INCOMPLETE))
        self._prompt_came = True

    def end(self) -> None:
        self._send(self._text())
        self._queue.put(None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._queue.get, None)

    def _text(self) -> str:
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _send(self, text: str) -> None:
        self._queue.put(text[self._shown :])
        self._shown = max(self._shown, len(text))


def tidied(pieces: Iterable[str], end: str = "") -> Iterator[str]:
    """The pieces without white space around the whole, without the end mark, and with control characters as numbers.

    end: text that may end an answer, and that may arrive in several pieces; empty: none
    """
    held, begun = "", False
    for piece in pieces:
        held += piece
        ready, held = _split(held if begun else held.lstrip(), end)
        if ready:
            begun = True
            yield printable(ready)
    rest = held.rstrip().removesuffix(end).rstrip()
    if rest:
        yield printable(rest)


def _split(text: str, end: str) -> tuple[str, str]:
    """What may be shown, and what waits: white space, and what may be the beginning of the end mark."""
    cut = next((n for n in range(min(len(end), len(text)), 0, -1) if text.endswith(end[:n])), 0)
    shown = text[: len(text) - cut].rstrip()
    return shown, text[len(shown) :]

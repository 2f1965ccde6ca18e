"""Rows of exactly one length for every step and rank: real text where there is a tokenizer, else a simple rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gemfleet.train.interfaces import PackedRows, StepRows
from numpy.typing import NDArray

from .case import TrainingCase

RULE_TOKENS = 20_000


class FixedRows:
    """A BlockSource of one epoch. Every step has as many tokens, so steps are comparable; their text differs."""

    has_eval = False

    def __init__(self, case: TrainingCase, stream: NDArray[np.int32]) -> None:
        self._case, self._stream = case, stream
        self.steps_per_epoch = case.total_steps + EXTRA_STEPS
        self._lengths = document_lengths(case.length, case.document)

    def step(self, epoch: int, step_in_epoch: int, rank: int) -> StepRows:
        """The rows of a rank are the next part of the stream that nobody has had."""
        case = self._case
        count = case.rows * case.length
        first = (step_in_epoch * case.ranks + rank) * count
        tokens = np.take(self._stream, np.arange(first, first + count), mode="wrap")
        supervised = np.tile(supervised_mask(self._lengths, case.supervised), case.rows)
        rows = PackedRows(
            tokens,
            supervised,
            np.tile(np.asarray(self._lengths, np.int32), case.rows),
            np.full(case.rows, len(self._lengths), np.int32),
        )
        examples = case.ranks * case.rows * len(self._lengths)
        return StepRows(rows, examples, case.ranks * count, case.ranks * int(supervised.sum()))

    def eval_rows(self, rank: int) -> PackedRows:
        """There is no evaluation."""
        empty = np.zeros(0, np.int32)
        return PackedRows(empty, np.zeros(0, np.bool_), empty, empty)


EXTRA_STEPS = 2  # one to count bytes on the wire, one to profile


def document_lengths(row: int, document: int) -> list[int]:
    """Documents of one length, and a shorter one where they do not fill the row."""
    whole, rest = divmod(row, min(document, row))
    return [min(document, row)] * whole + ([rest] if rest else [])


def supervised_mask(lengths: list[int], share: float) -> NDArray[np.bool_]:
    """The last `share` of each document, never its first token."""
    masks = [np.arange(length) >= max(1, length - round(share * length)) for length in lengths]
    return np.concatenate(masks)


def token_stream(model_folder: Path, vocabulary: int) -> NDArray[np.int32]:
    """Tokens to cut rows from: question-answer text, or where there is no tokenizer a rule that can be learnt."""
    if not (model_folder / "tokenizer.json").exists():
        return (np.arange(RULE_TOKENS, dtype=np.int64) * 7 % min(vocabulary, 256)).astype(np.int32)
    from gemfleet.train.data.demo import demo_data_rows
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    text = "\n".join(f"{row['prompt']}\n{row['completion']}" for row in demo_data_rows())
    return np.asarray(tokenizer(text)["input_ids"], dtype=np.int32)

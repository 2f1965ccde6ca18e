"""What is trained on: rows of exactly one length for every step and rank, or random documents of typical lengths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gemfleet.benchmarks.shared.seams import FixedSteps
from gemfleet.train.data.packing import TokenBlock
from gemfleet.train.interfaces import BlockSource, PackedRows, StepRows
from gemfleet.train.local.source import LocalBlockSource
from numpy.typing import NDArray

from .case import TrainingCase, typical_lengths

RULE_TOKENS = 20_000
EXTRA_STEPS = 2  # one to count bytes on the wire, one to profile


def rows_of(case: TrainingCase, model_folder: str | None, vocabulary: int) -> BlockSource:
    """The source that the case asks for."""
    if case.document:
        return fixed_rows(case, token_stream(model_folder, vocabulary))
    lengths = typical_lengths(case.examples * (case.total_steps + EXTRA_STEPS), case.length, 1)
    fixed: dict[str, Any] = {"max_length": case.length, "seed": 0, "world_size": case.ranks}
    return LocalBlockSource(random_documents(vocabulary, lengths, 1), {}, global_batch=case.examples, **fixed)


def random_documents(vocabulary: int, lengths: Sequence[int], seed: int) -> TokenBlock:
    """Random tokens, about half of them supervised, never a document's first."""
    random = np.random.default_rng(seed)
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    supervised = random.random(int(ends[-1])) > 0.5
    supervised[ends[:-1]] = False
    return TokenBlock(random.integers(3, vocabulary, int(ends[-1])).astype(np.int32), supervised, ends)


def fixed_rows(case: TrainingCase, stream: NDArray[np.int32]) -> FixedSteps:
    """Every step has as many tokens, so steps are comparable; their text is the next part of the stream. Documents have
    one length, a shorter one fills the row; the second half of each is supervised."""
    starts = np.arange(0, case.length, case.document)
    lengths = np.diff(np.append(starts, case.length))
    masks = [np.arange(n) >= max(1, n - n // 2) for n in lengths.tolist()]
    supervised = np.tile(np.concatenate(masks), case.rows)
    documents = np.tile(lengths.astype(np.int32), case.rows)
    row_documents = np.full(case.rows, len(lengths), np.int32)
    count = case.rows * case.length

    def make(step: int, rank: int) -> StepRows:
        first = (step * case.ranks + rank) * count
        tokens = np.take(stream, np.arange(first, first + count), mode="wrap")
        rows = PackedRows(tokens, supervised, documents, row_documents)
        return StepRows(rows, case.ranks * len(documents), case.ranks * count, case.ranks * rows.supervised_tokens)

    return FixedSteps(case.total_steps + EXTRA_STEPS, make)


def token_stream(model_folder: str | None, vocabulary: int) -> NDArray[np.int32]:
    """Tokens to cut rows from: question-answer text, or where there is no tokenizer a rule that can be learnt."""
    if model_folder is None or not (Path(model_folder) / "tokenizer.json").exists():
        return (np.arange(RULE_TOKENS, dtype=np.int64) * 7 % min(vocabulary, 256)).astype(np.int32)
    from gemfleet.train.data.demo import demo_data_rows
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    text = "\n".join(f"{row['prompt']}\n{row['completion']}" for row in demo_data_rows())
    return np.asarray(tokenizer(text)["input_ids"], dtype=np.int32)

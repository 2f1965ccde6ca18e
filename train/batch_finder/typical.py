"""Makes passes like those of a run, for probes to time: documents of its lengths, packed as in its steps.

Full rows measure memory, but they cannot show the speed of a size. More rows in a pass gain by saving passes whose rows
are not full, and last passes of a step that have few rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..config.schema import TrainConfig
from ..interfaces import BlockSource, PackedRows

STEPS = 4
TIMED_PASSES = 4

# For each document its tokens, how many of them are supervised, and its pictures.
Row = Sequence[tuple[int, int, int]]
Steps = Sequence[Sequence[Row]]


def typical_steps(source: BlockSource, config: TrainConfig, world_size: int) -> Steps:
    """The rows of the first steps. Of each step, it takes the rank with the most tokens: the others wait for it."""
    count = min(STEPS, source.steps_per_epoch, config.total_steps(source.steps_per_epoch))
    steps = [
        [source.step(0, step, rank).rows for rank in range(config.data_ranks(world_size))] for step in range(count)
    ]
    return [_rows_of(max(ranks, key=lambda rows: len(rows.tokens))) for ranks in steps]


def typical_passes(
    steps: Steps, rows_per_pass: int, vocabulary: int, seed: int = 0, soft_tokens: int = 0
) -> list[PackedRows]:
    """Up to `TIMED_PASSES` passes of these steps, spread from the first to the last, with random tokens.

    soft_tokens: of a picture; every picture has the id 0
    """
    packed = [_packed(rows, vocabulary, seed, soft_tokens) for rows in steps]
    passes = [part for rows in packed for part in rows.micro_batches(rows_per_pass)]
    chosen = np.linspace(0, len(passes) - 1, min(TIMED_PASSES, len(passes))).round().astype(int)
    return [passes[index] for index in chosen]


def most_pictures(steps: Steps) -> int:
    """The most pictures that a row of these steps holds."""
    return max((sum(pictures for *_, pictures in row) for rows in steps for row in rows), default=0)


def _rows_of(rows: PackedRows) -> list[list[tuple[int, int, int]]]:
    starts = np.cumsum(rows.document_lengths) - rows.document_lengths
    supervised = np.add.reduceat(rows.supervised.astype(int), starts) if len(starts) else starts
    pictures = np.diff(np.searchsorted(rows.picture_starts, [*starts, len(rows.tokens)]))
    documents = list(zip(rows.document_lengths.tolist(), supervised.tolist(), pictures.tolist(), strict=True))
    ends = np.cumsum(rows.row_documents)
    return [documents[end - count : end] for end, count in zip(ends, rows.row_documents, strict=True)]


def _packed(rows: Sequence[Row], vocabulary: int, seed: int, soft_tokens: int) -> PackedRows:
    """Packed rows of random tokens. A document begins with its pictures, and its last tokens are supervised."""
    documents = [document for row in rows for document in row]
    flags = [np.arange(tokens) >= tokens - supervised for tokens, supervised, _ in documents]
    lengths = np.array([tokens for tokens, *_ in documents], np.int32)
    begins = np.cumsum(lengths) - lengths
    starts = [
        begin + soft_tokens * n for begin, (*_, count) in zip(begins, documents, strict=True) for n in range(count)
    ]
    return PackedRows(
        np.random.default_rng(seed).integers(3, vocabulary, int(lengths.sum())).astype(np.int32),
        np.concatenate([np.empty(0, np.bool_), *flags]),
        lengths,
        np.array([len(row) for row in rows], np.int32),
        np.zeros(len(starts), np.int64),
        np.array(starts, np.int64),
    )

"""Counts over tokenised examples: lengths, and how an epoch packs into rows. Pure functions of the lengths."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.data.packing import (
    Ints,
    divide_among_ranks,
    pack_rows,
    step_indices,
    steps_per_epoch,
)

from .view import Bucket, Epoch, Lengths

BUCKETS = 10
PACKED_EXAMPLES = 5_000  # packing of the steps with the first of these stands for all


def describe_lengths(lengths: Ints) -> Lengths | None:
    """The lengths of examples, in tokens. None if there are no examples."""
    if not len(lengths):
        return None
    return Lengths(
        shortest=int(lengths.min()),
        median=int(np.median(lengths)),
        longest=int(lengths.max()),
        histogram=_histogram(lengths),
    )


def _histogram(lengths: Ints) -> list[Bucket]:
    """Buckets of a round width from the shortest length on. The last one takes the longest hundredth if that is far."""
    shortest, most, longest = int(lengths.min()), int(np.quantile(lengths, 0.99)), int(lengths.max())
    width = _round_width(max(1, most - shortest + 1) / BUCKETS)
    first = (shortest - 1) // width
    bounds = [width * step for step in range(first, first + BUCKETS + 2) if width * step < most]
    edges = [*bounds, bounds[-1] + width]
    if longest > edges[-1]:
        edges.append(longest)
    counts = np.histogram(lengths, bins=np.array(edges) + 0.5)[0]
    return [
        Bucket(shortest=low + 1, longest=high, count=int(count))
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]


def _round_width(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, … that is at least so much."""
    scale = 1
    while True:
        for factor in (1, 2, 5):
            if factor * scale >= least:
                return factor * scale
        scale *= 10


def describe_epoch(counts: Ints, train: TrainConfig, ranks: int) -> Epoch | None:
    """The first epoch; None if it has no examples. counts: see `describe`

    How full rows are is computed for the steps of its first examples.
    """
    if not len(counts):
        return None
    global_batch = train.batch.global_
    steps = steps_per_epoch(len(counts), global_batch)
    tokens, supervised, pictures = counts.sum(axis=0).tolist()
    sample = range(min(steps, max(1, PACKED_EXAMPLES // global_batch)))
    chosen = [step_indices(counts[:, 0], step, global_batch) for step in sample]
    rows = sum(_rows_of_step(lengths, ranks, train.data.max_length) for lengths in chosen)
    return Epoch(
        examples=len(counts),
        tokens=tokens,
        supervised_tokens=supervised,
        pictures=pictures,
        global_batch=global_batch,
        steps=steps,
        steps_of_run=train.total_steps(steps),
        ranks=ranks,
        row_tokens=train.data.max_length,
        rows=rows / len(sample),
        fill=_total(chosen) / (rows * train.data.max_length),
    )


def _rows_of_step(lengths: Ints, ranks: int, max_length: int) -> int:
    return sum(len(pack_rows(lengths[mine], max_length)) for mine in divide_among_ranks(lengths, ranks))


def _total(parts: Iterable[Ints]) -> int:
    return sum(int(part.sum()) for part in parts)

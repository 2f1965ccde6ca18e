"""Puts the description of a run's data together from the counts of its sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from gemfleet.cluster.redaction import printable
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.data.packing import Ints
from gemfleet.train.data.report import DataReport, Reason

from .counts import describe_epoch, describe_lengths
from .view import DataView, Example, LeftOutRows, SetView


def describe(
    train: TrainConfig, ranks: int, sets: Sequence[SetView], counts: Ints, notes: Sequence[str] = ()
) -> DataView:
    """The description, yet without examples.

    ranks: of the run; notes: sentences on how the data was opened
    counts: of each example of the first epoch, in its order; see `TokenBlock.counts`
    """
    return DataView(
        model=train.model,
        sets=list(sets),
        lengths=describe_lengths(counts[:, 0]),
        epoch=describe_epoch(counts, train, ranks),
        notes=[printable(note) for note in notes],
        examples=list[Example](),
    )


def describe_set(use: Literal["train", "eval"], report: DataReport) -> SetView:
    """One set, by its report."""
    return SetView(
        name=report.name,
        path=printable(report.source),
        use=use,
        format=report.format,
        rows=report.rows,
        examples=report.examples,
        held_out=report.eval_examples,
        epoch_examples=round(report.examples * report.repeats) if use == "train" else 0,
        tokens=report.tokens,
        supervised_tokens=report.supervised_tokens,
        pictures=report.pictures,
        truncated=report.truncated,
        left_out=_left_out(report.left_out),
        unused=[printable(name) for name in sorted(report.unused)],
    )


def _left_out(reasons: Mapping[str, Reason]) -> list[LeftOutRows]:
    """The most frequent reason first."""
    ordered = sorted(reasons.items(), key=lambda item: (-item[1].count, item[0]))
    return [
        LeftOutRows(reason=printable(name), count=reason.count, first=[printable(row) for row in reason.first])
        for name, reason in ordered
    ]

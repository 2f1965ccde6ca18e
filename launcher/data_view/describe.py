"""Puts the description of a run's data together from the counts of its sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from gemfleet.cluster.redaction import printable
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.data.packing import Ints
from gemfleet.train.data.report import DataReport, Reason

from .counts import describe_epoch, describe_lengths
from .view import DataView, Example, LeftOutRows, SetView


@dataclass(frozen=True)
class SetCounts:
    """One tokenised data set.

    counts: int64 [examples, 2], tokens and supervised tokens of each usable example
    train: int64, the indices of those to train on; those that are not among them are held out, or it is for evaluation
    """

    name: str
    use: Literal["train", "eval"]
    report: DataReport
    counts: Ints
    train: Ints

    def view(self) -> SetView:
        tokens, supervised = self.counts.sum(axis=0).tolist() if len(self.counts) else (0, 0)
        return SetView(
            name=self.name,
            path=printable(self.report.source),
            use=self.use,
            format=self.report.format,
            rows=self.report.rows,
            examples=len(self.counts),
            held_out=len(self.counts) - len(self.train) if self.use == "train" else 0,
            tokens=tokens,
            supervised_tokens=supervised,
            truncated=self.report.truncated,
            left_out=_left_out(self.report.left_out),
            unused=[printable(name) for name in sorted(self.report.unused)],
        )


def describe(
    train: TrainConfig, ranks: int, sets: Sequence[SetCounts], examples: Sequence[Example], limit: int | None = None
) -> DataView:
    """The description. ranks: of the run; limit: how many rows of each set were read, None: all"""
    trained = [found.counts[found.train] for found in sets if found.use == "train"]
    counts = np.concatenate([np.empty((0, 2), np.int64), *trained])
    return DataView(
        model=train.model,
        limit=limit,
        sets=[found.view() for found in sets],
        lengths=describe_lengths(counts[:, 0]),
        epoch=describe_epoch(counts, train, ranks),
        notes=[printable(note) for found in sets for note in found.report.notes],
        examples=list(examples),
    )


def _left_out(reasons: Mapping[str, Reason]) -> list[LeftOutRows]:
    """The most frequent reason first."""
    ordered = sorted(reasons.items(), key=lambda item: (-item[1].count, item[0]))
    return [
        LeftOutRows(reason=printable(name), count=reason.count, first=[printable(row) for row in reason.first])
        for name, reason in ordered
    ]

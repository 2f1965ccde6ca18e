"""Reads and tokenises a run's data in this process, as a run does on its cluster, and counts it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from gemfleet.train.config.data_section import DataSet
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.config.strict import MOST
from gemfleet.train.data.packing import Ints, TokenBlock, split_eval
from gemfleet.train.data.readers import BadRow, Row, RowSource, open_set
from gemfleet.train.data.report import DataReport
from gemfleet.train.data.tokenizing import Encoder, tokenize_rows
from gemfleet.train.errors import UserError

from .describe import SetCounts, describe
from .spans import example_of
from .view import DataView, Example

if TYPE_CHECKING:
    from rich.progress import Progress

CHUNK_ROWS = 500


@dataclass(frozen=True)
class Reading:
    """How data is read.

    tokenizer: of the model; embedding_rows: see `Encoder`; progress: where bars go
    limit: rows of each set, None: all; examples: how many of each set are shown
    """

    tokenizer: Any
    embedding_rows: int | None = None
    progress: Progress | None = None
    limit: int | None = None
    examples: int = 2

    def encoder(self, data: DataSet, columns: tuple[str, ...]) -> Encoder | None:
        return Encoder(self.tokenizer, data, columns, self.embedding_rows) if columns else None


def gather(train: TrainConfig, reading: Reading, ranks: int) -> DataView:
    """The description of a run's data. Raises UserError for data that is missing, or of another kind than is asked."""
    shown: list[Example] = []
    sets = [_count(data, reading, shown, train) for data in train.data.train_sets()]
    sets += [_count(data, reading, shown, None) for data in train.data.eval_sets()]
    return describe(train, ranks, sets, shown, reading.limit)


def one_row(train: TrainConfig, reading: Reading, wanted: str) -> Example:
    """One row as the model sees it, also where it is left out. wanted: `17`, or `NAME:17` where there are several sets.

    Raises UserError if there is no such set or row.
    """
    data, number = _find(train, wanted)
    source = open_set(replace(data, limit=None))
    row = next(islice(source.rows, number - 1, None), None)
    if row is None:
        raise UserError(f"--row is {wanted}, but {data.path} has fewer rows; rows are counted from 1")
    done = tokenize_rows([row], reading.encoder(data, source.columns))
    reason = "; ".join(f"{left.reason} ({left.detail})" if left.detail else left.reason for left in done.left_out)
    if reason:  # its tokens are shown, if it has any without a limit of their number
        unlimited = replace(data, section=data.section.model_copy(update={"max_length": MOST}))
        done = tokenize_rows([row], reading.encoder(unlimited, source.columns))
    tokens, supervised = (done.block.tokens, done.block.supervised) if len(done.block) else ([], [])
    return example_of(row.name, tokens, supervised, reading.tokenizer).model_copy(update={"left_out": reason})


def _find(train: TrainConfig, wanted: str) -> tuple[DataSet, int]:
    name, _, number = wanted.rpartition(":")
    sets = [*train.data.train_sets(), *train.data.eval_sets()]
    found = [data for data in sets if data.name == name] if name else train.data.train_sets()
    if len(found) != 1:
        names = ", ".join(data.name for data in sets)
        raise UserError(f"--row is {wanted}; give a set's name with a number, as {sets[0].name}:17 (the sets: {names})")
    if not number.isdecimal() or int(number) < 1:
        raise UserError(f"--row is {wanted}; give the number of a row, counted from 1")
    return found[0], int(number)


@dataclass
class _Counting:
    """What is known of one set so far. counts: see `SetCounts`, by chunk"""

    report: DataReport
    counts: list[Ints] = field(default_factory=list)

    def add(self, chunk: list[Row | BadRow], encoder: Encoder | None) -> tuple[TokenBlock, list[str]]:
        """Tokenise a chunk. Returns its block, and the name of each example."""
        done = tokenize_rows(chunk, encoder)
        self.report.rows += len(chunk)
        self.report.truncated += done.truncated
        self.report.unused |= done.unused
        self.report.add_left_out(done.left_out)
        sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(done.block.supervised, dtype=np.int64)])
        self.counts.append(np.stack([done.block.lengths, np.diff(sums[done.block.offsets])], axis=1))
        left = {row.name for row in done.left_out}
        return done.block, [row.name for row in chunk if row.name not in left]


def _count(data: DataSet, reading: Reading, shown: list[Example], train: TrainConfig | None) -> SetCounts:
    """Read and count one set, and add its first examples to `shown`. train: None for a set to evaluate on"""
    limits = [limit for limit in (data.limit, reading.limit) if limit is not None]
    source = open_set(replace(data, limit=min(limits, default=None)))
    encoder = reading.encoder(data, source.columns)
    counting = _Counting(DataReport(data.path, format=encoder.format if encoder else ""))
    counting.report.note(source.note)
    wanted = reading.examples
    for chunk in _chunks(source, reading.progress):
        block, names = counting.add(chunk, encoder)
        for index, name in enumerate(names[:wanted]):
            one = block.select([index])
            shown.append(example_of(name, one.tokens.tolist(), one.supervised.tolist(), reading.tokenizer))
        wanted -= min(wanted, len(names))
    counts = np.concatenate([np.empty((0, 2), np.int64), *counting.counts])
    held = train.data.eval_fraction if train is not None and not train.data.eval_sets() else 0.0
    mine, _ = split_eval(len(counts), held, train.seed if train is not None else 0)
    return SetCounts(data.name, "eval" if train is None else "train", counting.report, counts, mine)


def _chunks(source: RowSource, progress: Progress | None) -> Iterator[list[Row | BadRow]]:
    task = progress.add_task(f"Tokenising {source.name}", total=source.total) if progress else None
    while chunk := list(islice(source.rows, CHUNK_ROWS)):
        yield chunk
        if progress is not None and task is not None:
            progress.update(task, advance=len(chunk))

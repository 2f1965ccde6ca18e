"""Reads and tokenises a run's data in this process, as a run does on its cluster, and counts it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from gemfleet.cluster.redaction import printable
from gemfleet.launcher.sources.fetch import is_remote
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.config.sections.data import DataSet
from gemfleet.train.config.strict import MOST
from gemfleet.train.data.mixture import divide
from gemfleet.train.data.packing import Ints
from gemfleet.train.data.pictures.format import PictureFormat
from gemfleet.train.data.pictures.rows import picture_files, with_pictures
from gemfleet.train.data.readers import is_hub_id, open_set
from gemfleet.train.data.report import DataReport
from gemfleet.train.data.tokenizing import Encoder, tokenize_rows
from gemfleet.train.errors import UserError
from gemfleet.train.local.source import tokenised_chunks
from gemfleet.train.model.resolve import embedding_rows

from .describe import describe, describe_set
from .spans import example_of
from .tokenizer import model_here, quick_tokenizer
from .view import DataView, Example

if TYPE_CHECKING:
    from rich.progress import Progress

FIRST_ROWS = 100  # for a short look


@dataclass(frozen=True)
class Reading:
    """How data is read.

    tokenizer: of the model; embedding_rows, pictures: see `Encoder`; progress: where bars go
    limit: rows of each set, None: all; examples: how many of each set are shown
    """

    tokenizer: Any
    embedding_rows: int | None = None
    pictures: PictureFormat | None = None
    progress: Progress | None = None
    limit: int | None = None
    examples: int = 2

    def encoder(self, data: DataSet, columns: tuple[str, ...]) -> Encoder:
        return Encoder(self.tokenizer, data, columns, self.embedding_rows, self.pictures)


def gather(train: TrainConfig, reading: Reading, ranks: int) -> DataView:
    """The description of a run's data. Raises UserError for data that is missing, or of another kind than is asked."""
    sets, eval_sets = train.data.train_sets(), train.data.eval_sets()
    shown: list[Example] = []
    trained = [_read(data, reading, shown) for data in sets]
    scored = [_read(data, replace(reading, examples=0), shown) for data in eval_sets]
    usable = [(data, one) for data, one in zip(sets, trained, strict=True) if len(one.counts)]
    epoch = _first_epoch(train, usable) if usable else np.empty((0, 3), np.int64)
    views = [describe_set("train", one.report) for one in trained]
    views += [describe_set("eval", one.report) for one in scored]
    notes = [note for one in (*trained, *scored) for note in one.report.notes]
    view = describe(train, ranks, views, epoch, notes)
    refused = _refused(train, [one.report for one in (*trained, *scored)])
    return view.model_copy(update={"limit": reading.limit, "examples": shown, "refused": refused})


def _refused(train: TrainConfig, reports: Sequence[DataReport]) -> str:
    """Why a run would not train on this data; empty if it would."""
    for report in reports:
        try:
            report.check(train.data)
        except UserError as refusal:
            return printable(str(refusal))
    return ""


def _first_epoch(train: TrainConfig, sets: Sequence[tuple[DataSet, _Counted]]) -> Ints:
    """The examples of the first epoch as the run mixes its sets. See `TokenBlock.counts`"""
    fraction = 0.0 if train.data.eval_sets() else train.data.eval_fraction
    counts, reports = [one.counts for _, one in sets], [one.report for _, one in sets]
    division = divide([data for data, _ in sets], counts, fraction, train.seed, reports)
    return np.concatenate(counts)[division.train[division.mixture.order(train.seed, 0)]]


def first_rows(train: TrainConfig) -> DataView | str:
    """The description of the first rows of each set, or why they cannot be read before the run starts.

    Nothing is fetched: neither sources nor the model's tokenizer.
    """
    for path in train.data.paths().values():
        if is_remote(path) or is_hub_id(path):
            return f"{path} is read when the run starts"
    folder = None if is_remote(train.model) else model_here(train.model)
    if folder is None:
        return f"not read: the tokenizer of {train.model} is not on this machine yet; `gemfleet data` fetches it"
    sees = PictureFormat.of(folder)
    reading = Reading(quick_tokenizer(folder), embedding_rows(folder), sees, limit=FIRST_ROWS, examples=1)
    return gather(train, reading, 1)


def one_row(train: TrainConfig, reading: Reading, wanted: str) -> Example:
    """One row as the model sees it, also where it is left out. wanted: `17`, or `NAME:17` where there are several sets.

    Raises UserError if there is no such set or row.
    """
    data, number = _find(train, wanted)
    source = open_set(replace(data, limit=None))
    one = replace(source, rows=islice(source.rows, number - 1, number))
    row = next(with_pictures(one, data, picture_files(data)).rows if reading.pictures else one.rows, None)
    if row is None:
        raise UserError(f"--row is {wanted}, but {data.path} has fewer rows; rows are counted from 1")
    done = tokenize_rows([row], reading.encoder(data, source.columns) if source.columns else None)
    reason = "; ".join(f"{left.reason} ({left.detail})" if left.detail else left.reason for left in done.left_out)
    if reason and source.columns:  # its tokens are shown, if it has any without a limit of their number
        unlimited = replace(data, section=data.section.model_copy(update={"max_length": MOST}))
        done = tokenize_rows([row], reading.encoder(unlimited, source.columns))
    return example_of(row.name, done.block, reading.tokenizer, done.pixels).model_copy(update={"left_out": reason})


def _find(train: TrainConfig, wanted: str) -> tuple[DataSet, int]:
    name, _, number = wanted.rpartition(":")
    sets = [*train.data.train_sets(), *train.data.eval_sets()]
    found = [data for data in sets if data.name == name] if name else train.data.train_sets()
    if not found or (not name and len(found) > 1):
        names = ", ".join(data.name for data in sets)
        raise UserError(f"--row is {wanted}; give a set's name with a number, as {sets[0].name}:17 (the sets: {names})")
    if not number.isdecimal() or int(number) < 1:
        raise UserError(f"--row is {wanted}; give the number of a row, counted from 1")
    return found[0], int(number)


@dataclass
class _Counted:
    """One set. counts: of each usable example, see `TokenBlock.counts`"""

    report: DataReport
    counts: Ints


def _read(data: DataSet, reading: Reading, shown: list[Example]) -> _Counted:
    """Read and count one set, and add its first examples to `shown`."""
    limits = [limit for limit in (data.limit, reading.limit) if limit is not None]
    data, report = replace(data, limit=min(limits, default=None)), DataReport.of_set(data)
    counts, wanted = [np.empty((0, 3), np.int64)], reading.examples
    files = picture_files(data) if reading.pictures else None
    for chunk, done in tokenised_chunks(data, report, reading.encoder, files, reading.progress):
        counts.append(done.block.counts)
        left = {row.name for row in done.left_out}
        names = [row.name for row in chunk if row.name not in left][:wanted]
        for index, name in enumerate(names):
            shown.append(example_of(name, done.block.select([index]), reading.tokenizer, done.pixels))
        wanted -= len(names)
    found = np.concatenate(counts)
    report.count(found)
    return _Counted(report, found)

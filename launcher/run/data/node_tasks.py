"""What a node does with a run's data in one Ray task: tokenise a chunk of rows, or pack some steps."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from gemfleet.cluster.phases import PHASES
from gemfleet.launcher.data_view.tokenizer import quick_tokenizer
from gemfleet.train.config.sections.data import DataSet
from gemfleet.train.data.digest import Digests, example_digests
from gemfleet.train.data.packing import Ints, PackedBlock, TokenBlock, pack_steps
from gemfleet.train.data.pictures.format import PictureFormat
from gemfleet.train.data.readers import BadRow, Row
from gemfleet.train.data.report import DataReport
from gemfleet.train.data.tokenizing import Encoder, tokenize_rows
from gemfleet.train.errors import UserError
from gemfleet.train.model.resolve import embedding_rows


@dataclass(frozen=True)
class Summary:
    """What the driver hears of a chunk. counts: see `TokenBlock.counts`; pictures: their ids, in the order returned
    phases: of the task's process, see `Phases.taken`
    """

    counts: Ints
    digests: Digests
    report: DataReport
    pictures: list[int]
    phases: dict[str, Any] | None = None


def tokenise_task(
    chunk: list[Row | BadRow],
    data: DataSet,
    columns: tuple[str, ...],
    folders: dict[str, str],
    pictures: PictureFormat | None,
    results: int,
) -> tuple[Any, ...]:
    """Tokenise one chunk of rows in a task of Ray's. See `tokenise_here`.

    folders: for each Ray node id, the folder there with the tokenizer
    results: how many values Ray expects, which are filled up with None
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a task has one CPU
    PHASES.enter("tokenises")
    node = ray.get_runtime_context().get_node_id()
    if node not in folders:
        raise UserError(f"node {node} was asked to tokenise but holds no tokenizer; start the run again")
    block, summary, *pixels = tokenise_here(chunk, data, columns, folders[node], pictures)
    found = (block, replace(summary, phases=PHASES.taken("data task")), *pixels)
    return (*found, *[None] * (results - len(found)))


def tokenise_here(
    chunk: list[Row | BadRow], data: DataSet, columns: tuple[str, ...], folder: str, pictures: PictureFormat | None
) -> tuple[Any, ...]:
    """Tokenise one chunk of rows. Returns its block, a `Summary`, and the pixels of each picture of the block once.

    columns: of the data; folder: with the tokenizer; pictures: see `Encoder`
    """
    rows = embedding_rows(Path(folder))
    encoder = Encoder(quick_tokenizer(Path(folder)), data, columns, rows, pictures) if columns else None
    done = tokenize_rows(chunk, encoder)
    report = DataReport(data.path)
    report.add(done, len(chunk))
    return (
        done.block,
        Summary(done.block.counts, example_digests(done.block), report, list(done.pixels)),
        *done.pixels.values(),
    )


def pack_task(
    blocks: list[Any], starts: Ints, steps: list[Ints], world_size: int, max_length: int, after: object = None
) -> tuple[PackedBlock, None]:
    """Pack some steps for all ranks. Reads one block after another and copies only the wanted examples.

    blocks, starts: see `TokenisedSet`; steps: for each step, the indices of its examples in the whole set
    after: what another task returned beside its block, so that this one begins when that one has ended
    """
    wanted = np.concatenate(steps)
    owner = np.searchsorted(starts, wanted, side="right") - 1
    order = np.argsort(owner, kind="stable")
    parts = []
    for number in np.unique(owner).tolist():
        block: TokenBlock = ray.get(blocks[number])
        parts.append(block.select(wanted[owner == number] - starts[number]))
    gathered = TokenBlock.concatenate(parts)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    ends = np.cumsum([len(step) for step in steps])
    return pack_steps([gathered.select(index) for index in np.split(place, ends[:-1])], world_size, max_length), None

"""Tokenises a run's data on the cluster. Ray tasks do the work, and the tokens stay in the object store.

The driver reads the rows. It holds lengths and references, never tokens. Ranks get the same rows as from
`train/local/source.py`, which prepares data without Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from gemfleet.train.config.data_section import DataConfig, DataSet, listed
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.data.digest import data_digest
from gemfleet.train.data.packing import Ints, split_eval
from gemfleet.train.data.readers import open_set
from gemfleet.train.data.report import DataReport
from gemfleet.train.data.tokenizing import choose_format
from gemfleet.train.errors import UserError
from gemfleet.train.local.source import chunks
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from .node_tasks import tokenise_task

if TYPE_CHECKING:
    from rich.progress import Progress

PENDING_PER_CPU = 2  # tasks in flight, so that the driver does not read far ahead of the cluster


@dataclass(frozen=True)
class TokenisedSet:
    """A tokenised data set in the object store.

    blocks: a reference to a `TokenBlock` for each chunk of rows, in the order of the data
    starts: int64 [blocks + 1], the number of examples before each block
    counts: int64 [examples, 2], tokens and supervised tokens of each example
    """

    blocks: list[Any]
    starts: Ints
    counts: Ints


@dataclass(frozen=True)
class PreparedData:
    """Tokenised examples and their use.

    train: int64, the indices of those to train on; evaluation: a set and the indices of its examples to score
    """

    tokenised: TokenisedSet
    train: Ints
    evaluation: tuple[TokenisedSet, Ints] | None
    report: DataReport


def tokenise_on_cluster(
    config: TrainConfig, tokenizer_folders: Mapping[str, str], progress: Progress | None = None
) -> PreparedData:
    """Read the data on this node, tokenise it on the cluster, and split off the evaluation set.

    tokenizer_folders: for each Ray node id (hex) that may work, the folder there with the tokenizer
    Raises UserError when no example is left to train on, or when no node with the tokenizer has a CPU.
    """
    data = config.data
    report = DataReport(data.spoken())
    tokenised = _tokenise(data.train_sets(), tokenizer_folders, report, progress)
    evaluation: tuple[TokenisedSet, Ints] | None = None
    if eval_sets := data.eval_sets():
        eval_report = DataReport(listed([found.path for found in eval_sets]))
        eval_set = _tokenise(eval_sets, tokenizer_folders, eval_report, progress)
        report.note(eval_report.aside())
        train = np.arange(len(tokenised.counts), dtype=np.int64)
        evaluation = (eval_set, np.arange(len(eval_set.counts), dtype=np.int64))
    else:
        train, held_out = split_eval(len(tokenised.counts), data.eval_fraction, config.seed)
        evaluation = (tokenised, held_out) if len(held_out) else None
    report.examples, report.eval_examples = len(train), len(evaluation[1]) if evaluation else 0
    report.tokens, report.supervised_tokens = tokenised.counts[train].sum(axis=0).tolist()
    return PreparedData(tokenised, train, evaluation, report)


def _tokenise(
    sets: list[DataSet], folders: Mapping[str, str], report: DataReport, progress: Progress | None
) -> TokenisedSet:
    """Tokenise all sets, one after the other, into one."""
    blocks: list[Any] = []
    summaries: list[Any] = []
    for data in sets:
        for block, summary in _tokenise_one(data, folders, report, progress):
            blocks.append(block)
            summaries.append(summary)
    return _collect(blocks, summaries, sets[0].section, report)


def _tokenise_one(
    data: DataSet, folders: Mapping[str, str], report: DataReport, progress: Progress | None
) -> list[tuple[Any, Any]]:
    """References to the block and the summary of each chunk of one data set. See `tokenise_task`."""
    source = open_set(data)
    report.note(source.note)
    if source.columns:
        report.format = choose_format(data, source.columns)  # raises for a wrong column before any task starts
    nodes, cpus = _worker_nodes(folders)
    turns = cycle(nodes)
    task = progress.add_task(f"Tokenising {source.name}", total=source.total) if progress else None
    remote = ray.remote(tokenise_task)
    parts: list[tuple[Any, Any]] = []
    pending: dict[Any, int] = {}

    def settle(limit: int) -> None:
        while len(pending) > limit:
            done, _ = ray.wait(list(pending), num_returns=1)
            rows = pending.pop(done[0])
            if progress is not None and task is not None:
                progress.update(task, advance=rows)

    for chunk in chunks(source):
        # Soft: when the node dies, its task runs on another, which has its own folder or says that it has none.
        where = NodeAffinitySchedulingStrategy(next(turns), soft=True)
        options = remote.options(num_cpus=1, num_returns=2, scheduling_strategy=where)
        block, summary = options.remote(chunk, data, source.columns, dict(folders))
        parts.append((block, summary))
        pending[summary] = len(chunk)
        settle(PENDING_PER_CPU * cpus)
    settle(0)
    return parts


def _collect(blocks: list[Any], summaries: list[Any], data: DataConfig, report: DataReport) -> TokenisedSet:
    parts = []
    digests = []
    for counts, digest, part in _get(summaries):
        parts.append(counts)
        digests.append(digest)
        report.merge(part)
    report.digest = data_digest(digests)
    counts = np.concatenate([np.empty((0, 2), np.int64), *parts])
    report.examples = len(counts)
    report.check(data)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum([len(part) for part in parts], dtype=np.int64)])
    return TokenisedSet(blocks, starts, counts)


def _worker_nodes(folders: Mapping[str, str]) -> tuple[list[str], int]:
    """The ids of the living nodes with a CPU and the tokenizer, and how many CPUs these nodes have."""
    cpus = {node["NodeID"]: int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]}
    nodes = sorted(node for node in folders if cpus.get(node, 0) >= 1)
    if not nodes:
        raise UserError(
            "no node that holds the tokenizer has a CPU for Ray; start nodes with `ray start --num-cpus` above 0"
        )
    return nodes, sum(cpus[node] for node in nodes)


def _get(references: list[Any]) -> list[Any]:
    try:
        values: list[Any] = ray.get(references)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise
    return values

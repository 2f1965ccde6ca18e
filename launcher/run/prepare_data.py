"""The data of a run prepared by the whole cluster: tokenised and packed by Ray tasks, kept in the object store.

The driver reads rows and holds lengths and references, never the tokens. The result equals `train.local_source`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from gemfleet.train.config.schema import DataConfig, TrainConfig
from gemfleet.train.data.digest import data_digest
from gemfleet.train.data.packing import (
    Ints,
    epoch_order,
    split_eval,
    step_indices,
    steps_per_epoch,
)
from gemfleet.train.data.readers import open_rows
from gemfleet.train.data.report import DataReport
from gemfleet.train.data.tokenizing import choose_format
from gemfleet.train.errors import UserError
from gemfleet.train.local.source import chunks, eval_section
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from .data_tasks import RayBlockSource, pack_task, tokenise_task

if TYPE_CHECKING:
    from rich.progress import Progress

TOKENS_PER_BLOCK = 4_000_000  # about 20 MB in the object store
MAX_STEPS_PER_BLOCK = 256
PENDING_PER_CPU = 2  # tasks in flight, so that the driver does not read far ahead of the cluster


@dataclass(frozen=True)
class TokenisedSet:
    """A tokenised data set in the object store.

    blocks: one reference to a `TokenBlock` for each chunk of rows, in the order read
    starts: int64 [blocks + 1], the number of examples before each block
    counts: int64 [N, 2], tokens and supervised tokens of every example
    """

    blocks: list[Any]
    starts: Ints
    counts: Ints


@dataclass(frozen=True)
class PreparedData:
    """Tokenised examples, and which of them train. A run that changes its world size packs them anew."""

    tokenised: TokenisedSet
    train: Ints
    evaluation: tuple[TokenisedSet, Ints] | None
    report: DataReport


def tokenise_on_cluster(
    config: TrainConfig, tokenizer_folders: Mapping[str, str], progress: Progress | None = None
) -> PreparedData:
    """Read the data on this node, tokenise it on the cluster, split off the evaluation set.

    `tokenizer_folders` gives, for each Ray node id (hex) that may work, the folder there that holds the tokenizer.
    UserError when no example is left to train on, or no node that holds the tokenizer has a CPU.
    """
    data = config.data
    report = DataReport(data.train)
    tokenised = _tokenise(data, tokenizer_folders, report, progress)
    evaluation: tuple[TokenisedSet, Ints] | None = None
    if data.eval is not None:
        section = eval_section(data)
        eval_report = DataReport(section.train)
        eval_set = _tokenise(section, tokenizer_folders, eval_report, progress)
        report.note(eval_report.aside())
        train = np.arange(len(tokenised.counts), dtype=np.int64)
        evaluation = (eval_set, np.arange(len(eval_set.counts), dtype=np.int64))
    else:
        train, held_out = split_eval(len(tokenised.counts), data.eval_fraction, config.seed)
        evaluation = (tokenised, held_out) if len(held_out) else None
    report.examples, report.eval_examples = len(train), len(evaluation[1]) if evaluation else 0
    report.tokens, report.supervised_tokens = tokenised.counts[train].sum(axis=0).tolist()
    return PreparedData(tokenised, train, evaluation, report)


def pack_on_cluster(
    prepared: PreparedData,
    config: TrainConfig,
    world_size: int,
    start_step: int = 0,
    progress: Progress | None = None,
) -> RayBlockSource:
    """Pack the steps from `start_step` to the run's end for `world_size` ranks; returns when every block is ready."""
    global_batch = config.batch.global_
    per_epoch = steps_per_epoch(len(prepared.train), global_batch)
    steps = range(start_step, config.total_steps(per_epoch))
    tokens_per_step = max(1, prepared.report.tokens // per_epoch)
    per_block = max(1, min(MAX_STEPS_PER_BLOCK, TOKENS_PER_BLOCK // tokens_per_step))
    pack = ray.remote(pack_task).options(num_cpus=1, scheduling_strategy="SPREAD")

    def submit(tokenised: TokenisedSet, chosen: list[Ints]) -> Any:
        return pack.remote(tokenised.blocks, tokenised.starts, chosen, world_size, config.data.max_length)

    evaluation = submit(prepared.evaluation[0], [prepared.evaluation[1]]) if prepared.evaluation else None
    examples = _step_examples(prepared.train, steps, per_epoch, global_batch, config.seed)
    blocks = []
    for first in range(0, len(steps), per_block):
        blocks.append(submit(prepared.tokenised, [next(examples) for _ in steps[first : first + per_block]]))
    _wait_all([*blocks, *([evaluation] if evaluation is not None else [])], "Packing", progress)
    return RayBlockSource(per_epoch, start_step, per_block, blocks, evaluation)


def _step_examples(train: Ints, steps: range, per_epoch: int, global_batch: int, seed: int) -> Iterator[Ints]:
    """The examples of each step of the run, as indices into the tokenised set."""
    known, order = -1, train
    for step in steps:
        epoch, step_in_epoch = divmod(step, per_epoch)
        if epoch != known:
            known, order = epoch, epoch_order(len(train), seed, epoch)
        yield train[step_indices(order, step_in_epoch, global_batch)]


def _tokenise(
    data: DataConfig, folders: Mapping[str, str], report: DataReport, progress: Progress | None
) -> TokenisedSet:
    source = open_rows(data.train, data.split, data.limit)
    report.note(source.note)
    if source.columns:
        report.format = choose_format(data, source.columns)  # a wrong column is told before any task starts
    nodes, cpus = _worker_nodes(folders)
    turns = cycle(nodes)
    task = progress.add_task(f"Tokenising {source.name}", total=source.total) if progress else None
    remote = ray.remote(tokenise_task)
    blocks: list[Any] = []
    summaries: list[Any] = []
    pending: dict[Any, int] = {}

    def settle(limit: int) -> None:
        while len(pending) > limit:
            done, _ = ray.wait(list(pending), num_returns=1)
            rows = pending.pop(done[0])
            if progress is not None and task is not None:
                progress.update(task, advance=rows)

    for chunk in chunks(source):
        # Soft: should the node die, its task runs elsewhere, where it finds its own folder or says that there is none.
        where = NodeAffinitySchedulingStrategy(next(turns), soft=True)
        options = remote.options(num_cpus=1, num_returns=2, scheduling_strategy=where)
        block, summary = options.remote(chunk, data, source.columns, dict(folders))
        blocks.append(block)
        summaries.append(summary)
        pending[summary] = len(chunk)
        settle(PENDING_PER_CPU * cpus)
    settle(0)
    return _collect(blocks, summaries, data, report)


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
    """Ids of the living nodes that have a CPU and the tokenizer, and the CPUs they have together."""
    cpus = {node["NodeID"]: int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]}
    nodes = sorted(node for node in folders if cpus.get(node, 0) >= 1)
    if not nodes:
        raise UserError(
            "no node that holds the tokenizer has a CPU for Ray; start nodes with `ray start --num-cpus` above 0"
        )
    return nodes, sum(cpus[node] for node in nodes)


def _wait_all(references: Sequence[Any], description: str, progress: Progress | None) -> None:
    task = progress.add_task(description, total=len(references)) if progress else None
    pending = list(references)
    while pending:
        # Not fetched: a block is made where it is made, and travels only to the node that reads it.
        done, pending = ray.wait(pending, num_returns=1, fetch_local=False)
        if progress is not None and task is not None:
            progress.update(task, advance=len(done))


def _get(references: list[Any]) -> list[Any]:
    try:
        values: list[Any] = ray.get(references)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise
    return values

"""Packs a run's tokenised data on the cluster for a number of ranks. When that number changes, packs it again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import ray
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.data.packing import Ints, step_indices, steps_per_epoch

from .block_source import RayBlockSource
from .node_tasks import pack_task
from .tokenise import PreparedData, TokenisedSet

if TYPE_CHECKING:
    from rich.progress import Progress

TOKENS_PER_BLOCK = 4_000_000  # about 20 MB in the object store
MAX_STEPS_PER_BLOCK = 256
TOKENS_PACKED_HERE = 500_000  # the driver packs so few itself, sooner than a process of Ray's would start


def pack_on_cluster(
    prepared: PreparedData,
    config: TrainConfig,
    world_size: int,
    start_step: int = 0,
    progress: Progress | None = None,
) -> RayBlockSource:
    """Pack the steps from `start_step` to the run's end for `world_size` ranks. Returns when all blocks are ready."""
    global_batch = config.batch.global_
    per_epoch = steps_per_epoch(len(prepared.train), global_batch)
    steps = range(start_step, config.total_steps(per_epoch))
    tokens_per_step = max(1, prepared.report.tokens // per_epoch)
    scored = sum(int(one.counts[chosen, 0].sum()) for one, chosen in prepared.evaluation.values())
    here = len(steps) * tokens_per_step + scored <= TOKENS_PACKED_HERE
    per_block = max(1, min(MAX_STEPS_PER_BLOCK, TOKENS_PER_BLOCK // tokens_per_step))
    pack = ray.remote(pack_task).options(num_cpus=1, scheduling_strategy="SPREAD")

    def submit(tokenised: TokenisedSet, chosen: list[Ints]) -> Any:
        options = (tokenised.blocks, tokenised.starts, chosen, world_size, config.data.max_length)
        return ray.put(pack_task(*options)) if here else pack.remote(*options)

    evaluation = {name: submit(scored, [chosen]) for name, (scored, chosen) in prepared.evaluation.items()}
    examples = _step_examples(prepared, steps, per_epoch, global_batch, config.seed)
    blocks = []
    for first in range(0, len(steps), per_block):
        blocks.append(submit(prepared.tokenised, [next(examples) for _ in steps[first : first + per_block]]))
    _wait_all([*blocks, *evaluation.values()], "Packing", progress)
    return RayBlockSource(per_epoch, start_step, per_block, blocks, evaluation, prepared.pictures)


def _step_examples(
    prepared: PreparedData, steps: range, per_epoch: int, global_batch: int, seed: int
) -> Iterator[Ints]:
    """The examples of each step, as indices into the tokenised set."""
    known, order = -1, prepared.train
    for step in steps:
        epoch, step_in_epoch = divmod(step, per_epoch)
        if epoch != known:
            known, order = epoch, prepared.mixture.order(seed, epoch)
        yield prepared.train[step_indices(order, step_in_epoch, global_batch)]


def _wait_all(references: Sequence[Any], description: str, progress: Progress | None) -> None:
    task = progress.add_task(description, total=len(references)) if progress else None
    pending = list(references)
    while pending:
        # Nothing is fetched here: a block stays where it was packed until a rank reads it.
        done, pending = ray.wait(pending, num_returns=1, fetch_local=False)
        if progress is not None and task is not None:
            progress.update(task, advance=len(done))

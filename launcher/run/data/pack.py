"""Packs a run's tokenised data on the cluster for a number of ranks. When that number changes, packs it again."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import lru_cache, partial
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
    first_needed: int | None = None,
    after: Any = None,
) -> RayBlockSource:
    """Pack the steps from `start_step` to the run's end. Returns when the ranks can begin.

    That needs the block of the step `first_needed` (default: the first one) and the evaluation sets. The blocks after
    it follow in the background, then those before it, which only a damaged checkpoint makes necessary. A rank waits
    for a block that is not there yet. after: a reference for which the background waits, None: it begins at once
    world_size: the ranks that have rows of their own: those of a context group share them
    """
    global_batch = config.batch.global_
    per_epoch = steps_per_epoch(len(prepared.train), global_batch)
    steps = range(start_step, config.total_steps(per_epoch))
    tokens_per_step = max(1, prepared.report.tokens // per_epoch)
    per_block = max(1, min(MAX_STEPS_PER_BLOCK, TOKENS_PER_BLOCK // tokens_per_step))
    starts = range(0, len(steps), per_block)
    packer = _Packer(world_size, config.data.max_length, after)
    needed = []
    evaluation = {}
    for name, (scored, chosen) in prepared.evaluation.items():
        evaluation[name] = packer.pack(scored, [chosen], int(scored.counts[chosen, 0].sum()))
        needed.append(evaluation[name])
    begin = max(0, ((start_step if first_needed is None else first_needed) - start_step) // per_block)
    blocks: list[Any] = [None] * len(starts)
    order = lru_cache(maxsize=2)(partial(prepared.mixture.order, config.seed))
    for index in [*range(begin, len(starts)), *range(min(begin, len(starts)))]:
        chosen_steps = []
        for step in steps[starts[index] : starts[index] + per_block]:
            epoch, step_in_epoch = divmod(step, per_epoch)
            chosen_steps.append(prepared.train[step_indices(order(epoch), step_in_epoch, global_batch)])
        first = index == begin
        tokens = len(chosen_steps) * tokens_per_step if first else None
        blocks[index] = packer.pack(prepared.tokenised, chosen_steps, tokens)
        needed += [blocks[index]] if first else []
    _wait_all(needed, "Packing", progress)
    return RayBlockSource(per_epoch, start_step, per_block, blocks, evaluation, prepared.pictures)


class _Packer:
    """Packs what ranks need first at once, and the rest in the background, one block on each node at a time.

    What is packed in the background reserves no CPU: the ranks may hold all of them by then.
    """

    def __init__(self, world_size: int, max_length: int, after: Any) -> None:
        self._rest = (world_size, max_length)
        self._task = ray.remote(pack_task)
        self._lanes: deque[Any] = deque([after] * max(1, sum(1 for node in ray.nodes() if node["Alive"])))
        self._here = 0

    def pack(self, tokenised: TokenisedSet, chosen: list[Ints], tokens: int | None) -> Any:
        """A reference to the packed block. tokens: about how many it has, where ranks need it first; None: later"""
        arguments = (tokenised.blocks, tokenised.starts, chosen, *self._rest)
        if tokens is not None and self._here + tokens <= TOKENS_PACKED_HERE:
            self._here += tokens
            return ray.put(pack_task(*arguments)[0])
        if tokens is not None:
            return self._submit(1, arguments)[0]
        block, done = self._submit(0, (*arguments, self._lanes.popleft()))
        self._lanes.append(done)
        return block

    def _submit(self, cpus: int, arguments: tuple[Any, ...]) -> Any:
        """References to what `pack_task` returns."""
        options = self._task.options(num_cpus=cpus, num_returns=2, scheduling_strategy="SPREAD")
        return options.remote(*arguments)


def _wait_all(references: Sequence[Any], description: str, progress: Progress | None) -> None:
    task = progress.add_task(description, total=len(references)) if progress else None
    pending = list(references)
    while pending:
        # Nothing is fetched here: a block stays where it was packed until a rank reads it.
        done, pending = ray.wait(pending, num_returns=1, fetch_local=False)
        if progress is not None and task is not None:
            progress.update(task, advance=len(done))

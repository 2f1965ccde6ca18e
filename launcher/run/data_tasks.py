"""What nodes do with a run's data: tasks that tokenise and pack, and the source that ranks read packed blocks from."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import ray
from gemfleet.train.config.schema import DataConfig
from gemfleet.train.data.digest import Digests, example_digests
from gemfleet.train.data.packing import Ints, PackedBlock, TokenBlock, pack_steps
from gemfleet.train.data.readers import BadRow, Row
from gemfleet.train.data.report import DataReport
from gemfleet.train.data.tokenizing import Encoder, tokenize_rows
from gemfleet.train.errors import UserError
from gemfleet.train.interfaces import PackedRows, StepRows
from gemfleet.train.model.resolve import embedding_rows


class RayBlockSource:
    """A `BlockSource` over packed blocks in the object store. It pickles; each process fetches one block ahead."""

    def __init__(
        self, steps_per_epoch: int, first_step: int, steps_per_block: int, blocks: list[Any], evaluation: Any | None
    ) -> None:
        """`blocks` refer to `PackedBlock`s of `steps_per_block` steps each; the first begins with step `first_step`."""
        self._state = (steps_per_epoch, first_step, steps_per_block, blocks, evaluation)
        self._steps_per_epoch, self._first_step, self._steps_per_block = steps_per_epoch, first_step, steps_per_block
        self._blocks, self._evaluation = blocks, evaluation
        self._held: dict[int, Future[PackedBlock]] = {}
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="block-fetch")

    def __reduce__(self) -> tuple[Any, ...]:
        return RayBlockSource, self._state

    @property
    def steps_per_epoch(self) -> int:
        return self._steps_per_epoch

    @property
    def has_eval(self) -> bool:
        return self._evaluation is not None

    def step(self, epoch: int, step_in_epoch: int, rank: int) -> StepRows:
        """See `BlockSource.step`. IndexError for a step that was not packed."""
        index = epoch * self._steps_per_epoch + step_in_epoch - self._first_step
        block, within = divmod(index, self._steps_per_block)
        if not 0 <= block < len(self._blocks):
            raise IndexError(f"step {step_in_epoch} of epoch {epoch} was not prepared")
        return self._fetch(block).step(within, rank)

    def eval_rows(self, rank: int) -> PackedRows:
        """See `BlockSource.eval_rows`."""
        if self._evaluation is None:
            return pack_steps([TokenBlock.concatenate([])], rank + 1, 1).step(0, rank).rows
        block: PackedBlock = ray.get(self._evaluation)
        return block.step(0, rank).rows

    def _fetch(self, block: int) -> PackedBlock:
        """The block now, and the next one begun. All others are let go."""
        wanted = [index for index in (block, block + 1) if index < len(self._blocks)]
        self._held = {
            index: self._held.get(index) or self._pool.submit(ray.get, self._blocks[index]) for index in wanted
        }
        return self._held[block].result()


def tokenise_task(
    chunk: list[Row | BadRow], data: DataConfig, columns: tuple[str, ...], folders: dict[str, str]
) -> tuple[TokenBlock, tuple[Ints, Digests, DataReport]]:
    """One chunk of rows as a block, with its examples' counts and digests, and the report on its rows."""
    node = ray.get_runtime_context().get_node_id()
    if node not in folders:
        raise UserError(f"node {node} was asked to tokenise but holds no tokenizer; start the run again")
    folder = folders[node]
    encoder = Encoder(_tokenizer(folder), data, columns, embedding_rows(Path(folder))) if columns else None
    done = tokenize_rows(chunk, encoder)
    report = DataReport(data.train, rows=len(chunk), truncated=done.truncated, unused=set(done.unused))
    report.add_left_out(done.left_out)
    sums = np.concatenate([np.zeros(1, np.int64), np.cumsum(done.block.supervised, dtype=np.int64)])
    counts = np.stack([done.block.lengths, np.diff(sums[done.block.offsets])], axis=1)
    return done.block, (counts, example_digests(done.block), report)


@lru_cache(maxsize=2)
def _tokenizer(folder: str) -> Any:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one CPU was asked for; the cluster is the parallelism
    from gemfleet.train.model.base_check import load_tokenizer

    return load_tokenizer(Path(folder))


def pack_task(blocks: list[Any], starts: Ints, steps: list[Ints], world_size: int, max_length: int) -> PackedBlock:
    """Some steps packed for all ranks. Blocks are read one after another, so only the wanted examples are copied."""
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
    return pack_steps([gathered.select(index) for index in np.split(place, ends[:-1])], world_size, max_length)

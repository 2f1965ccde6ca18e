"""The source from which ranks read packed blocks out of Ray's object store."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import ray
from gemfleet.train.data.packing import PackedBlock
from gemfleet.train.data.pictures.pixel_file import stacked
from gemfleet.train.interfaces import Ints, PackedRows, Pixels, StepRows


class RayBlockSource:
    """A `BlockSource` over packed blocks in the object store. Picklable. Each process fetches one block ahead."""

    def __init__(
        self,
        steps_per_epoch: int,
        first_step: int,
        steps_per_block: int,
        blocks: list[Any],
        evaluation: dict[str, Any],
        pictures: dict[int, Any] | None = None,
    ) -> None:
        """first_step: of the first block; blocks: references to `PackedBlock`s of `steps_per_block` steps each
        evaluation: for each evaluation set, by its name, a reference to its `PackedBlock`
        pictures: for each picture, by its id, a reference to its pixels
        """
        self._pictures = pictures or {}
        self._state = (steps_per_epoch, first_step, steps_per_block, blocks, evaluation, self._pictures)
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
    def eval_sets(self) -> tuple[str, ...]:
        return tuple(self._evaluation)

    @property
    def pictures(self) -> Ints:
        return np.array(sorted(self._pictures), np.int64)

    def step(self, epoch: int, step_in_epoch: int, rank: int) -> StepRows:
        """See `BlockSource.step`. Raises IndexError for a step that was not packed."""
        index = epoch * self._steps_per_epoch + step_in_epoch - self._first_step
        block, within = divmod(index, self._steps_per_block)
        if not 0 <= block < len(self._blocks):
            raise IndexError(f"step {step_in_epoch} of epoch {epoch} was not prepared")
        return self._fetch(block).step(within, rank)

    def eval_rows(self, rank: int, name: str) -> PackedRows:
        """See `BlockSource.eval_rows`."""
        block: PackedBlock = ray.get(self._evaluation[name])
        return block.step(0, rank).rows

    def pixels(self, ids: Ints) -> Pixels:
        """See `BlockSource.pixels`. Only the pictures of these ids come to this node."""
        found: list[Pixels] = ray.get([self._pictures[identity] for identity in ids.tolist()])
        return stacked(found)

    def _fetch(self, block: int) -> PackedBlock:
        """Wait for the block, begin to fetch the next one, and let go of all others."""
        wanted = [index for index in (block, block + 1) if index < len(self._blocks)]
        self._held = {
            index: self._held.get(index) or self._pool.submit(ray.get, self._blocks[index]) for index in wanted
        }
        return self._held[block].result()

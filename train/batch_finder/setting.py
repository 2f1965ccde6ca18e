"""What the search needs to know about a run: the rows it has, and a task for each rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..config.schema import TrainConfig
from ..interfaces import BlockSource, StepRows
from .finder import Variant
from .probes.child import ProbeTask
from .probes.group import GroupSettings
from .typical import Steps
from .variant_search import SearchLimits

STEPS_LOOKED_AT = 32


@dataclass(frozen=True)
class RankPlace:
    """The place of one rank. besides_bytes: see `ProbeTask`"""

    model_folder: str
    local_rank: int
    ranks_on_node: int
    besides_bytes: int


def settled(
    config: TrainConfig, variants: Sequence[Variant], chosen: str, rows: int, evaluation_rows: int
) -> TrainConfig:
    """The configuration with a search's result. evaluation_rows: the most in an evaluation's pass; 0: not known"""
    changes = next(variant.changes for variant in variants if variant.name == chosen)
    too_large = 0 < evaluation_rows < (config.evaluation.micro or rows)
    return with_variant(config, changes).with_micro(rows, evaluation_rows if too_large else None)


def with_variant(config: TrainConfig, changes: Sequence[tuple[str, Any]]) -> TrainConfig:
    return config.model_copy(update=dict(changes))


def probe_tasks(config: TrainConfig, places: Sequence[RankPlace], steps: Steps = ()) -> list[ProbeTask]:
    """A task for each rank. The group fills in the address where ranks meet. steps: of the run, see `typical.py`"""
    values = config.with_micro(1).model_dump(mode="json", by_alias=True)
    return [
        ProbeTask(
            config=values,
            model_folder=place.model_folder,
            rank=rank,
            world_size=len(places),
            local_rank=place.local_rank,
            ranks_on_node=place.ranks_on_node,
            address="",
            memory_limit=config.batch.memory_limit_bytes,
            besides_bytes=place.besides_bytes,
            steps=steps,
        )
        for rank, place in enumerate(places)
    ]


def largest_rows(source: BlockSource, config: TrainConfig, world_size: int) -> int:
    """The most rows that a rank has in the first steps: a larger pass would not be full."""
    return max(1, *(step.rows.row_count for step in first_steps(source, config, config.data_ranks(world_size))))


def first_steps(source: BlockSource, config: TrainConfig, data_ranks: int) -> list[StepRows]:
    """The rows of the first steps. data_ranks: of so many ranks, whose rows differ"""
    steps = min(STEPS_LOOKED_AT, source.steps_per_epoch, config.total_steps(source.steps_per_epoch))
    return [source.step(0, step, rank) for step in range(steps) for rank in range(data_ranks)]


def search_limits(source: BlockSource, config: TrainConfig, world_size: int, budget_s: float) -> SearchLimits:
    largest = largest_rows(source, config, world_size)
    return SearchLimits(
        largest, config.batch.probe_timeout_s, bool(source.eval_sets), config.evaluation.micro, budget_s
    )


def group_settings(config: TrainConfig, gpu: str = "") -> GroupSettings:
    """gpu: see `GroupSettings`"""
    return GroupSettings(config.batch.memory_margin, config.batch.probe_timeout_s, gpu)


def tokens_per_row(config: TrainConfig, world_size: int) -> int:
    """The tokens of a full row, over all ranks. Those of a context group share one."""
    return config.data_ranks(world_size) * config.data.max_length

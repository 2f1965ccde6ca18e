"""Decides how to settle `micro: auto`: by the plan, or by probes if the run can earn back the search."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..config.schema import TrainConfig
from ..interfaces import BlockSource
from ..planning.auto_strategy import Settled, workload_of
from ..planning.rows import PlannedRows, rows_by_plan
from .setting import first_steps, largest_rows
from .worth import worth_of_search


@dataclass(frozen=True)
class Decision:
    """probes: whether to search, for at most `budget_s` seconds; reason: why, or why not, as half a sentence

    planned: the plan's rows; None if the plan does not know the devices, so that only probes can find out
    """

    probes: bool
    planned: PlannedRows | None
    budget_s: float = math.inf
    reason: str = ""

    @property
    def rows(self) -> int:
        """The rows of one pass, if there are no probes."""
        return 1 if self.planned is None else self.planned.rows

    def at_most(self, rows: int | None) -> Decision:
        """The same decision with at most `rows` planned rows; None: unchanged."""
        if rows is None or self.planned is None or self.planned.rows <= rows:
            return self
        return replace(self, planned=PlannedRows(rows, "with more, memory ran out before"))

    def without_probes(self, reason: str) -> Decision:
        return replace(self, probes=False, reason=reason)

    def sentence(self) -> str:
        """A sentence: the plan's rows, and why."""
        why = "" if self.planned is None else f" by the plan: {self.planned.reason}"
        return f"micro-batch {self.rows}{why}" + (f"; {self.reason}" if self.reason else "")


def decide(
    config: TrainConfig,
    settled: Settled | None,
    source: BlockSource,
    world_size: int,
    steps_done: int = 0,
    on_gpu: bool = True,
) -> Decision:
    """The decision for a configuration whose micro-batch is open.

    settled: the plan's choice for these devices, None if it does not know them; steps_done: of a run that goes on
    on_gpu: whether the ranks have GPUs, if the plan does not know them
    """
    several = settled is not None and len(settled.kinds) > 1
    most = largest_rows(source, config, world_size) * (2 if several else 1)  # a fast kind may get twice the mean share
    pictures = len(source.pictures) > 0
    planned = None if settled is None else planned_rows(config, settled, most, pictures)
    if config.batch.micro == "probe":
        return Decision(True, planned)
    if settled is None or planned is None:
        return Decision(on_gpu, None, reason="what the devices hold is not known without probes")
    if settled.devices.kind == "cpu":
        return Decision(False, planned)
    steps = first_steps(source, config, 1)
    worth = worth_of_search(
        settled.shape,
        replace(workload_of(config, settled.devices.dtype, pictures=pictures), micro=planned.rows),
        settled.sharing,
        world_size,
        settled.devices.gpu,
        max(0, config.total_steps(source.steps_per_epoch) - steps_done),
        sum(step.step_tokens for step in steps) / len(steps),
        max(1, len(settled.kinds)),
    )
    return Decision(worth.pays, planned, worth.gain_s, worth.sentence())


def decide_by_kind(
    config: TrainConfig, settled: Settled, source: BlockSource, world_size: int, steps_done: int = 0
) -> dict[str, Decision]:
    """A decision for the devices of each kind, by the kind's name. See `decide`."""
    return {
        kind.gpu: decide(config, replace(settled, devices=kind), source, world_size, steps_done)
        for kind in settled.kinds
    }


def planned_rows(config: TrainConfig, settled: Settled, most_rows: int, pictures: bool = False) -> PlannedRows:
    """The plan's rows, from memory and shape alone. pictures: whether the data have some"""
    devices = settled.devices
    work = workload_of(config, devices.dtype, devices.kind, pictures)
    work = replace(work, chunk_rows=settled.config.loss_chunk)
    return rows_by_plan(
        settled.shape, work, settled.sharing, devices.ranks, devices.memory_bytes, devices.kind, most_rows
    )

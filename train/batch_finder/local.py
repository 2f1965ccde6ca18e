"""The search of `python -m train`: rank 0 runs a probe process for each rank of this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path

from ..config.schema import TrainConfig
from ..errors import UserError
from ..interfaces import BlockSource
from ..planning.auto_strategy import Settled
from .decision import Decision, decide
from .finder import Variant, find_batch
from .probes.group import ProbeGroup
from .probes.process import LocalProbe
from .report import found_sentences, table, trial_line
from .setting import (
    RankPlace,
    group_settings,
    probe_tasks,
    search_limits,
    settled,
    tokens_per_row,
    with_variant,
)
from .typical import typical_steps
from .variant_search import ProbeError
from .variants import variants_of

log = logging.getLogger("gemfleet.train")
LONGEST_SEARCH = timedelta(hours=6)


def settle_micro(
    config: TrainConfig,
    settled: Settled | None,
    model_folder: Path,
    source: BlockSource,
    rank: int,
    world_size: int,
    besides_bytes: int,
) -> TrainConfig:
    """The configuration with a number for `batch.micro`, equal on all ranks. Collective under `torchrun`.

    settled: the plan's choice; besides_bytes: memory that this process holds and a probe does not, such as the data
    """
    if isinstance(config.batch.micro, int):
        return config
    if config.max_steps == 0:
        return config.with_micro(1)
    decision = _on_this_machine(config, decide(config, settled, source, world_size), world_size)
    if settled is not None and settled.devices.kind == "cpu" and not decision.probes:
        return _by_plan(config, decision, rank)  # all ranks decide alike
    if world_size == 1:
        return settle_as_decided(config, settled, decision, model_folder, source, 1, besides_bytes)
    import torch.distributed as dist

    # gloo: until the probes have ended, nothing else may take memory of the GPUs
    waiting = dist.new_group(backend="gloo", timeout=LONGEST_SEARCH)
    answer: list[TrainConfig | BaseException] = [config]
    if rank == 0:
        try:
            answer = [settle_as_decided(config, settled, decision, model_folder, source, world_size, besides_bytes)]
        except Exception as error:
            answer = [error]
    dist.broadcast_object_list(answer, group=waiting)
    dist.destroy_process_group(waiting)
    if isinstance(answer[0], BaseException):
        raise answer[0]
    return answer[0]


def settle_as_decided(
    config: TrainConfig,
    settled: Settled | None,
    decision: Decision,
    model_folder: Path,
    source: BlockSource,
    world_size: int,
    besides_bytes: int,
) -> TrainConfig:
    """Carries the decision out, on one rank for all. If probes fail that nobody asked for, it takes the plan's rows."""
    if not decision.probes:
        return _by_plan(config, decision)
    if decision.reason:
        log.info("looking for a micro-batch: %s", decision.reason)
    variants = variants_of(config, settled.options if settled else ())
    try:
        return find_here(config, variants, model_folder, source, world_size, besides_bytes, decision.budget_s)
    except ProbeError as error:
        if config.batch.micro == "probe" or decision.planned is None:
            raise
        return _by_plan(config, decision.without_probes(f"probes failed: {error}"))


def _by_plan(config: TrainConfig, decision: Decision, rank: int = 0) -> TrainConfig:
    if rank == 0:
        log.info(decision.sentence())
    return config.with_micro(decision.rows)


def _on_this_machine(config: TrainConfig, decision: Decision, world_size: int) -> Decision:
    """The decision; without probes if ranks are on several machines. Raises UserError if probes are asked for there."""
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == world_size or not decision.probes:
        return decision
    if config.batch.micro == "probe":
        raise UserError(
            "train.batch.micro is 'probe', which torchrun can do on one machine only; "
            "give a number or auto, or use `gemfleet train` on a Ray cluster"
        )
    return decision.without_probes("torchrun can start probes on one machine only")


def find_here(
    config: TrainConfig,
    variants: Sequence[Variant],
    model_folder: Path,
    source: BlockSource,
    world_size: int,
    besides_bytes: int,
    budget_s: float,
) -> TrainConfig:
    """Searches with one probe process for each rank on this machine, and logs every trial."""
    steps = typical_steps(source, config, world_size)
    places = [RankPlace(str(model_folder), rank, world_size, besides_bytes) for rank in range(world_size)]

    def open_group(variant: Variant) -> AbstractContextManager[ProbeGroup]:
        tasks = probe_tasks(with_variant(config, variant.changes), places, steps)
        return ProbeGroup([LocalProbe() for _ in places], tasks, group_settings(config))

    found = find_batch(
        variants,
        open_group,
        search_limits(source, config, world_size, budget_s),
        tokens_per_row(config, world_size),
        lambda variant, trial: log.info(trial_line(variant, trial)),
    )
    for line in [*table(found), *found_sentences(found, config.evaluation.micro)]:
        log.info(line)
    return settled(config, variants, found.choice.variant, found.choice.rows, found.evaluation_rows)

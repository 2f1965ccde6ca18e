"""The search beside `python -m train`: rank 0 runs a probe process for every rank of this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path

from ..auto_strategy import Option
from ..config import TrainConfig
from ..errors import UserError
from ..interfaces import BlockSource
from .finder import Variant, find_batch
from .group import ProbeGroup
from .process import LocalProbe
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
from .variants import variants_of

log = logging.getLogger("gemfleet.train")
LONGEST_SEARCH = timedelta(hours=6)


def settle_micro(
    config: TrainConfig,
    options: Sequence[Option],
    model_folder: Path,
    source: BlockSource,
    rank: int,
    world_size: int,
    besides_bytes: int,
) -> TrainConfig:
    """The configuration with a number for `micro: auto`, equal on all ranks. Collective under `torchrun`.

    options: see `variants_of`; besides_bytes: what this process holds that a probe does not, such as the data
    """
    if config.batch.micro != "auto":
        return config
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) != world_size:
        raise UserError(
            "train.batch.micro is 'auto', which torchrun can find on one machine only; "
            "give a number, or use `gemfleet train` on a Ray cluster"
        )
    if world_size == 1:
        return find_here(config, options, model_folder, source, 1, besides_bytes)
    import torch.distributed as dist

    # gloo: on GPUs nothing may take memory before the probes had them to themselves
    waiting = dist.new_group(backend="gloo", timeout=LONGEST_SEARCH)
    answer: list[TrainConfig | BaseException] = [config]
    if rank == 0:
        try:
            answer = [find_here(config, options, model_folder, source, world_size, besides_bytes)]
        except Exception as error:
            answer = [error]
    dist.broadcast_object_list(answer, group=waiting)
    dist.destroy_process_group(waiting)
    if isinstance(answer[0], BaseException):
        raise answer[0]
    return answer[0]


def find_here(
    config: TrainConfig,
    options: Sequence[Option],
    model_folder: Path,
    source: BlockSource,
    world_size: int,
    besides_bytes: int,
) -> TrainConfig:
    """Search with one probe process a rank on this machine, and log every trial."""
    variants = variants_of(config, options)
    steps = typical_steps(source, config, world_size)
    places = [RankPlace(str(model_folder), rank, world_size, besides_bytes) for rank in range(world_size)]

    def open_group(variant: Variant) -> AbstractContextManager[ProbeGroup]:
        tasks = probe_tasks(with_variant(config, variant.changes), places, steps)
        return ProbeGroup([LocalProbe() for _ in places], tasks, group_settings(config))

    found = find_batch(
        variants,
        open_group,
        search_limits(source, config, world_size),
        tokens_per_row(config, world_size),
        lambda variant, trial: log.info(trial_line(variant, trial)),
    )
    for line in [*table(found), *found_sentences(found, config.evaluation.micro)]:
        log.info(line)
    return settled(config, variants, found.choice.variant, found.choice.rows, found.evaluation_rows)

"""A seeded fp32 run on ranks of unequal speed, called on every rank of a `RankPool`; and what slows a process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from gemfleet.train.data.packing import TokenBlock
from gemfleet.train.interfaces import Shares, StepRows
from gemfleet.train.kernels.loss import SupervisedCrossEntropy
from gemfleet.train.local.source import LocalBlockSource
from gemfleet.train.loop import Trainer
from gemfleet.train.model.gemma import attach_lora
from gemfleet.train.step.shares import SpeedShares
from gemfleet.train.strategies import build_strategy
from support.strategy_cases import FolderReporter, strategy_config


@dataclass(frozen=True)
class UnequalRun:
    """What a rank saw: losses, its tokens and rows of each step, changes of shares; on rank 0 also seconds, events."""

    losses: list[float]
    tokens: dict[int, int]
    passes: dict[int, int]
    changes: list[dict[str, Any]]
    seconds: list[float]
    events: list[str]


class WatchedSource(LocalBlockSource):
    """Notes what its rank was given."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.given: dict[int, StepRows] = {}

    def step(self, epoch: int, step_in_epoch: int, rank: int, shares: Shares | None = None) -> StepRows:
        rows = super().step(epoch, step_in_epoch, rank, shares)
        self.given[epoch * self.steps_per_epoch + step_in_epoch] = rows
        return rows


def documents(count: int, shortest: int, longest: int) -> TokenBlock:
    rng = np.random.default_rng(5)
    lengths = rng.integers(shortest, longest + 1, count)
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    supervised = np.ones(ends[-1], np.bool_)
    supervised[ends[:-1]] = False
    return TokenBlock(rng.integers(3, 512, ends[-1]).astype(np.int32), supervised, ends)


def unequal_case(
    model_folder: str,
    folder: str,
    changes: dict[str, Any],
    speeds: list[float] | None = None,
    sizes: tuple[int, int, int] = (64, 5, 30),
    sleeps: list[float] | None = None,
) -> UnequalRun:
    """Train, resuming from the newest checkpoint below `folder`. Collective.

    speeds: what the ranks measure of themselves; None: their real speeds
    sizes: number of documents, and the tokens of the shortest and the longest
    sleeps: seconds by which the ranks' devices take longer for each scored token
    """
    config, rank, ranks = strategy_config(**changes), dist.get_rank(), dist.get_world_size()
    work = Path(folder) / f"work-{rank}"
    work.mkdir(parents=True, exist_ok=True)
    strategy = build_strategy(config)
    base = strategy.load_base(Path(model_folder), torch.float32, torch.device("cpu"))
    model = attach_lora(base, config.lora, config.seed, "tiny")
    block = documents(*sizes)
    limits = {"global_batch": config.batch.global_, "max_length": config.data.max_length}
    source = WatchedSource(block, {}, seed=config.seed, world_size=ranks, **limits)
    reporter = FolderReporter(Path(folder))
    with slower_loss(0.0 if sleeps is None else sleeps[rank]), told_speed(None if speeds is None else speeds[rank]):
        trainer = Trainer(config, model, strategy, source, reporter, rank, work)
        trainer.run()
    history = trainer.progress.log_history
    return UnequalRun(
        [entry["loss"] for entry in history if "loss" in entry],
        {index: len(step.rows.tokens) for index, step in source.given.items()},
        {index: step.rows.row_count for index, step in source.given.items()},
        [entry for entry in history if "shares" in entry],
        [record["step_seconds"] for record in reporter.records if record["kind"] == "step"],
        [record["sentence"] for record in reporter.records if record["kind"] == "shares"],
    )


@contextmanager
def told_speed(speed: float | None) -> Iterator[None]:
    """Ranks measure this speed of themselves."""
    if speed is None:
        yield
        return
    at_rank = [speed if rank == dist.get_rank() else 0.0 for rank in range(dist.get_world_size())]
    with mock.patch.object(SpeedShares, "places", return_value=at_rank):
        yield


@contextmanager
def slower_loss(seconds: float) -> Iterator[None]:
    """As if the device took `seconds` longer for each scored token. A sleep takes as long on a busy machine."""
    compute = SupervisedCrossEntropy.losses_and_gradient

    def slowed(self: Any, hidden: torch.Tensor, targets: torch.Tensor, wants_gradient: bool) -> Any:
        time.sleep(seconds * len(targets))
        return compute(self, hidden, targets, wants_gradient)

    with mock.patch.object(SupervisedCrossEntropy, "losses_and_gradient", slowed):
        yield


def own_pid() -> int:
    return os.getpid()


@contextmanager
def half_a_core(pid: int) -> Iterator[None]:
    """Lets a process run on one core only, which it shares with a process that always computes."""
    allowed = os.sched_getaffinity(pid)
    core = {max(allowed)}
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        os.sched_setaffinity(busy.pid, core)
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), core)
        yield
    finally:
        busy.kill()
        busy.wait()
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), allowed)

"""The training phase: Ray Train V2 runs the ranks, the driver watches what arrives at the head."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch  # noqa: F401  (before pyarrow and ray: imported after them in a driver it once failed to load)

# isort: split
import pyarrow.fs
import ray.train
from gemfleet.launcher.placement import Placement
from gemfleet.launcher.rank.torch_backend import PreparedTorchConfig
from gemfleet.launcher.rank.train_rank import RankJob, train_rank
from gemfleet.launcher.run.signals import SIGNALS
from ray.train import UserCallback
from ray.train.torch import TorchTrainer

log = logging.getLogger("gemfleet.launcher")
POLL_SECONDS = 0.5
# Ray Train reads these from the driver's environment. How often the controller looks for lost ranks: its own 2 s is
# most of the time that a restart takes apart from starting Python. Drained nodes are `moves.py`'s: Ray's own watcher
# waits until the deadline and then counts a failure.
FIT_VARIABLES = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


@dataclass(frozen=True)
class FitSettings:
    """storage_path is a path inside `filesystem`; Ray keeps its own state in `<storage_path>/<name>`."""

    name: str
    placement: Placement
    filesystem: pyarrow.fs.FileSystem
    storage_path: str
    max_failures: int
    begin_attempt: Callable[[], int]
    callback: UserCallback


def build_trainer(job: RankJob, settings: FitSettings) -> TorchTrainer:
    """Ray's trainer for this run. It never deletes a checkpoint: the ledger is the store's."""
    placement = settings.placement
    return TorchTrainer(
        train_rank,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=placement.workers,
            use_gpu=bool(placement.gpus_per_worker),
            resources_per_worker=placement.resources_per_worker(),
            placement_strategy=placement.strategy,
        ),
        torch_config=PreparedTorchConfig(begin_attempt=settings.begin_attempt, on_gpu=placement.gpus_per_worker > 0),
        run_config=ray.train.RunConfig(
            name=settings.name,
            storage_path=settings.storage_path,
            storage_filesystem=settings.filesystem,
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=None),
            callbacks=[settings.callback],
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )


class FitThread(threading.Thread):
    """Runs `fit()` off the main thread, which stays free for progress and for Ctrl-C.

    In the main thread Ray would install its own SIGINT handler, which aborts without a checkpoint. Wait for `ended`,
    never with `join`: in CPython up to 3.12 a Ctrl-C during `join` marks the thread as ended while it still runs.
    """

    def __init__(self, trainer: TorchTrainer) -> None:
        super().__init__(name="gemfleet-fit", daemon=True)
        self._trainer = trainer
        self.error: BaseException | None = None
        self.ended = threading.Event()

    def run(self) -> None:
        added = {name: value for name, value in FIT_VARIABLES.items() if name not in os.environ}
        os.environ.update(added)
        try:
            self._trainer.fit()
        except BaseException as error:
            self.error = error
        finally:
            for name in added:
                os.environ.pop(name, None)
            self.ended.set()


def watch(fit: FitThread, poll: Callable[[], None], ask_to_stop: Callable[[], None]) -> bool:
    """Call `poll` until training ends. The first signal asks the ranks to stop, the second gives up waiting.

    Returns whether one came. Raises KeyboardInterrupt at the second one. `ray job stop` sends SIGTERM.
    """
    interrupted = False
    with SIGNALS.installed():
        while not fit.ended.is_set():
            try:
                SIGNALS.heed()
                poll()
                fit.ended.wait(POLL_SECONDS)
            except KeyboardInterrupt:
                if interrupted:
                    raise
                interrupted = True
                SIGNALS.heard()
                ask_to_stop()
        poll()
    return interrupted


def first_cause(error: BaseException) -> BaseException:
    """The exception of the first failed rank inside Ray's, or the error itself."""
    failures: dict[int, Any] = getattr(error, "worker_failures", {})
    cause = failures[min(failures)] if failures else error
    return getattr(cause, "cause", None) or getattr(cause, "controller_failure", None) or cause

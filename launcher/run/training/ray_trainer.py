"""One fit: Ray Train V2 runs the ranks in a thread, and the driver watches."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow.fs
import ray.train
from gemfleet.launcher.placement import Placement
from gemfleet.launcher.rank.ahead import RANK_VARIABLES
from gemfleet.launcher.rank.process_group import FixedRanks, GroupConfig
from gemfleet.launcher.rank.train_rank import RankTask, train_rank
from gemfleet.launcher.run.signals import SIGNALS
from ray.train import UserCallback
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from .processes import FIT_VARIABLES

log = logging.getLogger("gemfleet.launcher")
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class FitSettings:
    """storage_path: in `filesystem`; Ray keeps its own state in `<storage_path>/<name>`
    begin_attempt: begins an attempt and returns its generation
    """

    name: str
    placement: Placement
    filesystem: pyarrow.fs.FileSystem
    storage_path: str
    max_failures: int
    begin_attempt: Callable[[], int]
    callback: UserCallback


# The first serves Ray Data's data sets. The second gives back the ranks' resources where the controller dies and the
# driver goes on: ours ends then, and Ray gives back what a job has reserved when it ends.
LEFT_OUT = DatasetsCallback, PlacementGroupCleanerCallback


class RankTrainer(DataParallelTrainer):  # type: ignore[misc]
    """Ray's trainer without three actors of which each would be one more process before the first step.

    Two are of `LEFT_OUT`, the third asks an autoscaler, see `FixedRanks`.
    """

    def _create_default_callbacks(self) -> list[Any]:
        return [each for each in super()._create_default_callbacks() if not isinstance(each, LEFT_OUT)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        return super()._initialize_and_run_controller(
            **{**arguments, "scaling_policy": FixedRanks(self.scaling_config)}
        )


def build_trainer(task: RankTask, settings: FitSettings) -> DataParallelTrainer:
    """Ray's trainer for one fit. It never deletes a checkpoint: the store does."""
    placement = settings.placement
    return RankTrainer(
        train_rank,
        train_loop_config={"task": task},
        scaling_config=ray.train.ScalingConfig(
            num_workers=placement.ranks,
            use_gpu=bool(placement.gpus_per_rank),
            resources_per_worker=placement.resources_per_rank(),
            placement_strategy=placement.strategy,
        ),
        backend_config=GroupConfig(begin_attempt=settings.begin_attempt, on_gpu=placement.gpus_per_rank > 0),
        run_config=ray.train.RunConfig(
            name=settings.name,
            storage_path=settings.storage_path,
            worker_runtime_env={"env_vars": RANK_VARIABLES},
            storage_filesystem=settings.filesystem,
            failure_config=ray.train.FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=None),
            callbacks=[settings.callback],
            logging_config=ray.train.LoggingConfig(log_level="WARNING"),
        ),
    )


class FitThread(threading.Thread):
    """Runs `fit()` in a thread of its own. The main thread shows progress and hears Ctrl-C.

    In the main thread Ray would install its own SIGINT handler, which aborts without a checkpoint. Wait for `ended` and
    never call `join`: in CPython up to 3.12 a Ctrl-C during `join` marks the thread as ended while it still runs.
    """

    def __init__(self, trainer: DataParallelTrainer) -> None:
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
    """Call `poll` twice a second until the fit ends, and `ask_to_stop` at the first signal (`ray job stop` sends one).

    Returns whether a signal came. Raises KeyboardInterrupt at the second one.
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
    """The error of the first failed rank inside Ray's error, or the error itself."""
    failures: dict[int, Any] = getattr(error, "worker_failures", {})
    cause = failures[min(failures)] if failures else error
    return getattr(cause, "cause", None) or getattr(cause, "controller_failure", None) or cause

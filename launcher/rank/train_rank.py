"""What each rank runs inside Ray Train, and the `Reporter` that ties the training loop to the head.

Importable by name, so that Ray workers load it from the installed package and never from a script.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.util
from gemfleet.cluster.checkpoint_store.client import StoreClient
from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.cluster.registry.recorder_client import RecorderClient
from gemfleet.cluster.registry.run_records import RunState
from gemfleet.cluster.scratch import scratch_folder
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.data.digest import DataDigest
from gemfleet.train.device.out_of_memory import OutOfMemoryError
from gemfleet.train.errors import NonFiniteLossError, UserError
from gemfleet.train.interfaces import BlockSource
from gemfleet.train.loop import TrainResult

from .outbox import Outbox, OutboxLogHandler
from .reporter import RayReporter
from .torch_backend import GENERATION_VARIABLE
from .watchdog import Watchdog

HANG_EXIT_CODE = 70
HANG_GRACE_SECONDS = 2.0  # ranks that hang together all save their stacks before the first of them ends


@dataclass(frozen=True)
class FaultPolicy:
    """limits: seconds without progress, by phase; stop_on_failure: see `RayReporter`"""

    limits: Mapping[str, float]
    stop_on_failure: bool


@dataclass(frozen=True)
class RankJob:
    """Everything a rank needs; pickled once by Ray and sent to all ranks.

    model_folders: for each Ray node id, the folder there that holds the staged model
    data, accept_changes: see `run_training`
    """

    config: TrainConfig
    source: BlockSource
    model_folders: dict[str, str]
    recorder: RecorderClient
    store: StoreClient
    faults: FaultPolicy
    data: DataDigest | None = None
    accept_changes: bool = False


def train_rank(settings: dict[str, Any]) -> None:
    """The training function of every rank. Rank 0 tells the recorder how training ended.

    An error that would come again the same way is told to the recorder before it is raised. Ray's controller then does
    not restart the ranks (`failure_policy`), and Ray ends the other ranks, wherever they wait.
    """
    job: RankJob = settings["job"]
    rank = ray.train.get_context().get_world_rank()
    who = identity()
    outbox = Outbox(lambda batch, mark: job.recorder.push(rank, batch, who, mark))
    try:
        with forwarded_logs(outbox), scratch_folder("gemfleet-rank-") as work:
            result = _train(job, rank, outbox, work)
        if rank == 0:
            outbox.put({"kind": "result", "event": EventKind.RESULT, "device": device_name(), **asdict(result)})
    except OutOfMemoryError as error:
        outbox.put(
            {
                "kind": "event",
                "event": EventKind.RANK_OUT_OF_MEMORY,
                "message": str(error),
                "rank": rank,
                "micro": error.micro,
            }
        )
        raise
    except (UserError, NonFiniteLossError) as error:
        kind = "user" if isinstance(error, UserError) else "training"
        outbox.put({"kind": "event", "event": EventKind.FATAL, "message": str(error), "rank": rank, "cause": kind})
        outbox.flush()
        raise
    finally:
        outbox.close()


def _train(job: RankJob, rank: int, outbox: Outbox, work: Path) -> TrainResult:
    from gemfleet.train.worker import run_training

    generation = int(os.environ[GENERATION_VARIABLE])
    if rank == 0:
        job.recorder.transition(RunState.TRAINING)
    watchdog = Watchdog(job.faults.limits, partial(end_hanging_rank, job.recorder, rank, generation))
    store = job.store.attempt(generation)
    reporter = RayReporter(store, outbox, rank, work, watchdog.progress, job.faults.stop_on_failure)
    reporter.progress("start")
    local_rank = ray.train.get_context().get_local_rank()
    try:
        return run_training(
            job.config,
            model_folder(job),
            job.source,
            reporter,
            rank,
            local_rank,
            work,
            job.data,
            job.accept_changes,
        )
    finally:
        watchdog.close()
        reporter.close()


def end_hanging_rank(
    recorder: RecorderClient, rank: int, generation: int, phase: str, seconds: float, stacks: str
) -> None:
    """Save the stacks on the head, then end this process: Ray sees a lost rank and restarts the run."""
    try:
        recorder.save_stacks(rank, generation, phase, seconds, stacks)
        time.sleep(HANG_GRACE_SECONDS)
    finally:
        os._exit(HANG_EXIT_CODE)


def device_name() -> str:
    """What this rank trained on, in words."""
    from gemfleet.train.device.abilities import current_device

    return current_device(ray.train.get_context().get_local_rank()).name


def identity() -> dict[str, Any]:
    """Where this rank runs, for the registry."""
    node = ray.get_runtime_context().get_node_id()
    return {"node": node, "address": ray.util.get_node_ip_address(), "pid": os.getpid()}


def model_folder(job: RankJob) -> Path:
    """The model's folder on this rank's node."""
    node = ray.get_runtime_context().get_node_id()
    if node not in job.model_folders:
        raise RuntimeError(f"the model was not staged to node {node}, which joined after the run began")
    return Path(job.model_folders[node])


@contextmanager
def forwarded_logs(outbox: Outbox) -> Iterator[None]:
    """Send the log lines of this rank to the head while it trains, warnings of libraries among them."""
    handler = OutboxLogHandler(outbox)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    ours, root = logging.getLogger("gemfleet"), logging.getLogger()
    level = ours.level
    ours.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        ours.setLevel(level)

"""What each rank runs inside Ray Train: it connects the training loop to the recorder and the store on the head.

Ray's processes import it by name from the installed package.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.util
from gemfleet.cluster.checkpoint_store.client import StoreClient
from gemfleet.cluster.phases import PHASES
from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.cluster.registry.recorder_client import RecorderClient
from gemfleet.cluster.registry.run_records import RunState
from gemfleet.cluster.scratch import scratch_folder
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.data.digest import DataDigest
from gemfleet.train.device.out_of_memory import OutOfMemoryError
from gemfleet.train.errors import NonFiniteLossError, UserError
from gemfleet.train.interfaces import BlockSource, FeatureKeeper
from gemfleet.train.step.outcome import TrainResult

from .ahead import leave_out_bitsandbytes
from .outbox import Outbox, OutboxLogHandler
from .process_group import GENERATION_VARIABLE
from .reporter import RayReporter
from .watchdog import Watchdog

HANG_EXIT_CODE = 70
PHASE_NAMES = {"start": "loads the model", "step": "first step"}
HANG_GRACE_SECONDS = 1.0  # so that all hanging ranks save their stacks before the first of them ends


@dataclass(frozen=True)
class FaultPolicy:
    """limits: seconds that a rank may go without progress, by phase; stop_on_failure: see `RayReporter`"""

    limits: Mapping[str, float]
    stop_on_failure: bool


@dataclass(frozen=True)
class RankTask:
    """What a rank needs. Ray pickles it once and sends it to all ranks.

    model_folders: the model's folder on each node, by Ray node id
    data, accept_changes: see `run_training`
    adapter_folders: as model_folders, of the adapter to go on from; empty: a new one
    features: of pictures, on the head; None: each node has its own
    """

    config: TrainConfig
    source: BlockSource
    model_folders: dict[str, str]
    recorder: RecorderClient
    store: StoreClient
    faults: FaultPolicy
    data: DataDigest | None = None
    accept_changes: bool = False
    adapter_folders: Mapping[str, str] = field(default_factory=dict)
    features: FeatureKeeper | None = None


def train_rank(settings: dict[str, Any]) -> None:
    """The training function of each rank. Rank 0 tells the recorder the result.

    An error that a restart would meet again is told to the recorder before it is raised. Then Ray's controller does not
    restart the ranks (see `failure_policy`), and Ray ends all other ranks.
    """
    PHASES.enter("imports for training")
    task: RankTask = settings["task"]
    if task.config.quantization == "none":
        leave_out_bitsandbytes()
    rank = ray.train.get_context().get_world_rank()
    who = identity()
    outbox = Outbox(lambda batch, mark: task.recorder.push(rank, batch, who, mark))
    try:
        with forwarded_logs(outbox), scratch_folder("gemfleet-rank-") as work:
            result = _train(task, rank, outbox, work)
        if rank == 0:
            outbox.put({"kind": "result", "event": EventKind.RESULT, "device": device_name(), **asdict(result)})
    except OutOfMemoryError as error:
        outbox.event(EventKind.RANK_OUT_OF_MEMORY, str(error), rank=rank, micro=error.micro)
        raise
    except (UserError, NonFiniteLossError) as error:
        cause = "user" if isinstance(error, UserError) else "training"
        outbox.event(EventKind.FATAL, str(error), rank=rank, cause=cause)
        outbox.flush()
        raise
    finally:
        outbox.close()


def _train(task: RankTask, rank: int, outbox: Outbox, work: Path) -> TrainResult:
    from gemfleet.train.worker import run_training  # slow to import, and the driver does not need it

    generation = int(os.environ[GENERATION_VARIABLE])
    if rank == 0:
        task.recorder.transition(RunState.TRAINING)
    watchdog = Watchdog(task.faults.limits, partial(end_hanging_rank, task.recorder, rank, generation))
    store = task.store.attempt(generation)
    progress = partial(progressed, watchdog, outbox, rank)
    reporter = RayReporter(store, outbox, rank, work, progress, task.faults.stop_on_failure)
    reporter.progress("start")
    local_rank = ray.train.get_context().get_local_rank()
    try:
        return run_training(
            task.config,
            here(task.model_folders, "model"),
            task.source,
            reporter,
            rank,
            local_rank,
            work,
            task.data,
            task.accept_changes,
            here(task.adapter_folders, "adapter") if task.adapter_folders else None,
            task.features,
        )
    finally:
        watchdog.close()
        reporter.close()


def progressed(watchdog: Watchdog, outbox: Outbox, rank: int, phase: str) -> None:
    """Tell the watchdog, and the recorder how this process came to its first step, once that is over."""
    watchdog.progress(phase)
    if PHASES.current == PHASE_NAMES["step"]:
        if line := PHASES.close(f"rank {rank}"):
            outbox.put({"kind": "phases", "line": line})
    else:
        PHASES.enter(PHASE_NAMES.get(phase, phase))


def end_hanging_rank(
    recorder: RecorderClient, rank: int, generation: int, phase: str, seconds: float, stacks: str
) -> None:
    """Save the stacks on the head and end this process. Ray sees a lost rank and restarts the ranks."""
    try:
        recorder.save_stacks(rank, generation, phase, seconds, stacks)
        time.sleep(HANG_GRACE_SECONDS)
    finally:
        os._exit(HANG_EXIT_CODE)


def device_name() -> str:
    """The name of this rank's device."""
    from gemfleet.train.device.abilities import current_device

    return current_device(ray.train.get_context().get_local_rank()).name


def identity() -> dict[str, Any]:
    """Where this rank runs, for the registry: node id, address and process id."""
    node = ray.get_runtime_context().get_node_id()
    return {"node": node, "address": ray.util.get_node_ip_address(), "pid": os.getpid()}


def here(folders: Mapping[str, str], what: str) -> Path:
    """The folder of the model or adapter on this rank's node. Raises RuntimeError where it was not staged."""
    node = ray.get_runtime_context().get_node_id()
    if node not in folders:
        raise RuntimeError(f"the {what} was not staged to node {node}, which joined after the run began")
    return Path(folders[node])


@contextmanager
def forwarded_logs(outbox: Outbox) -> Iterator[None]:
    """Send all log lines of this process to the head while the block runs, also those of libraries."""
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

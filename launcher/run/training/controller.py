"""The training phase: one fit after another until the run has ended, each on the ground that there is then."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch  # noqa: F401  (before pyarrow and ray: imported after them in a driver it once failed to load)

# isort: split
from gemfleet.cluster.checkpoint_store.actor import StorePolicy, start_store
from gemfleet.cluster.checkpoint_store.client import StoreClient
from gemfleet.cluster.checkpoint_store.ray_snapshots import store_filesystem
from gemfleet.cluster.errors import DiskFull, RegistryDamaged, RegistryLost, StoreError
from gemfleet.cluster.head import HeadActor
from gemfleet.cluster.registry.run_recorder import start_recorder
from gemfleet.cluster.registry.run_registry import RunState
from gemfleet.launcher.config.schema import ClusterConfig
from gemfleet.launcher.display import run_facts, training_facts
from gemfleet.launcher.rank.train_rank import FaultPolicy, RankJob
from gemfleet.train.config.home import gemfleet_home
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.step.record import CURVES

from ..admission import Ground, most_ranks, move
from .attempts import Attempts
from .memory_restart import MemoryRestart
from .ray_trainer import FitSettings, FitThread, build_trainer, watch
from .relocation import MoveWatch, move_after

if TYPE_CHECKING:
    from ..launch import Run


@dataclass(frozen=True)
class Fitted:
    """How training ended: whether Ctrl-C ended it, the recorder's last snapshot, what Ray raised, the last ground."""

    interrupted: bool
    snapshot: dict[str, Any]
    error: BaseException | None
    ground: Ground
    store: StoreClient


def fit(run: Run, train: TrainConfig, ground: Ground) -> Fitted:
    """Train to the end. After every fit it is decided whether another one goes on from the newest checkpoint."""
    run.enter(RunState.TRAINING, "training")
    recorder = start_recorder(gemfleet_home(), run.id, CURVES)
    cluster = run.config.cluster
    store_actor = start_store(run.id, run.folder, recorder, store_policy(cluster), cluster.storage)
    store = StoreClient(store_actor)
    memory = MemoryRestart(run.registry, run.id)
    while True:
        recorder.call("pause", False)
        run.registry.forget_ranks(run.id)
        workers = ground.placement.workers
        moves = MoveWatch(run.registry, run.id, recorder, workers, partial(most_ranks, run, workers))
        failures_left = max(0, memory.failures_left(cluster.max_failures))
        thread = fit_thread(run, train, ground, recorder, store, store_actor, failures_left)
        interrupted = watch(thread, partial(look, run, recorder, moves), partial(ask_to_stop, run))
        if interrupted:
            break
        if memory.wanted():
            train = memory.lowered(train, run.note, run.asked.activation_checkpointing == "auto")
            continue
        snapshot = recorder.call("snapshot")
        onward = move_after(run.registry, run.id, moves.asked, snapshot["result"], thread.error is not None)
        if onward is None or (not onward[1] and memory.failures_left(cluster.max_failures) < 0):
            break
        ground = move(run, ground, train, store, *onward)
    with suppress(StoreError, OSError):  # publishing itself says so when the disk is full
        store.begin_attempt()  # a rank that is late can write nothing more, and what never arrived whole is removed
    last = recorder.call("snapshot")
    show_end(run, last)
    return Fitted(interrupted, last, thread.error, ground, store)


def fit_thread(
    run: Run,
    train: TrainConfig,
    ground: Ground,
    recorder: HeadActor,
    store: StoreClient,
    store_actor: HeadActor,
    failures_left: int,
) -> FitThread:
    """One fit, begun. Attempts before it can write nothing more."""
    cluster = run.config.cluster
    attempts = Attempts(store, recorder, store.begin_attempt())
    filesystem = store_filesystem(store_actor)
    settings = FitSettings(
        f"launch-{attempts.before}", ground.placement, filesystem, "", failures_left, attempts, recorder
    )
    faults = FaultPolicy(cluster.watchdog.limits(), cluster.on_checkpoint_failure == "stop")
    digest = ground.data.report.digest
    job = RankJob(train, ground.source, ground.folders, recorder, store, faults, digest, run.accept_changes)
    thread = FitThread(build_trainer(job, settings))
    thread.start()
    return thread


def look(run: Run, recorder: HeadActor, moves: MoveWatch) -> None:
    """What the driver does twice a second while ranks train. They do so also while the registry cannot be read."""
    try:
        snapshot = recorder.call("snapshot")
        if step := snapshot["step"]:
            ending = step["step"] == step["total_steps"]
            facts = "scoring and saving" if ending else training_facts(step, snapshot["eval"])
            run.display.advance(step["step"], step["total_steps"], facts)
        moves.look()
    except (DiskFull, RegistryLost, RegistryDamaged) as error:
        run.note_once(str(error))


def show_end(run: Run, snapshot: dict[str, Any]) -> None:
    """The last picture is of the whole run, not of its last step."""
    if step := snapshot["step"]:
        figures = run_facts(run.registry.figures(run.id), snapshot["eval"])
        run.display.advance(step["step"], step["total_steps"], figures)


def ask_to_stop(run: Run) -> None:
    run.registry.request_stop(run.id)
    run.note("stopping: a checkpoint is saved after this step; press Ctrl-C again to leave at once")


def store_policy(cluster: ClusterConfig) -> StorePolicy:
    gib = 2**30
    return StorePolicy(
        keep=cluster.keep_checkpoints,
        best_of="eval_loss" if cluster.keep_best else None,
        warn_free_bytes=int(cluster.warn_free_gib * gib),
        refuse_free_bytes=int(cluster.refuse_free_gib * gib),
    )

"""The training phase: one fit after another until training is over."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch  # noqa: F401  (before pyarrow and ray: after them it has failed to load in a driver)

# isort: split
from gemfleet.cluster.checkpoint_store.client import StoreClient
from gemfleet.cluster.checkpoint_store.ray_snapshots import store_filesystem
from gemfleet.cluster.errors import DiskFull, RegistryDamaged, RegistryLost, StoreError
from gemfleet.cluster.head import HeadActor
from gemfleet.cluster.phases import PHASES
from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.cluster.registry.recorder_client import RecorderClient
from gemfleet.cluster.registry.run_registry import RunState
from gemfleet.launcher.display import run_facts, training_facts
from gemfleet.launcher.rank.feature_actor import start_features
from gemfleet.launcher.rank.head_features import HeadFeatures
from gemfleet.launcher.rank.train_rank import FaultPolicy, RankTask
from gemfleet.launcher.run.admission import most_ranks
from gemfleet.launcher.run.prepared import Ground
from gemfleet.launcher.run.session import RunSession
from gemfleet.train.config.schema import TrainConfig

from .ahead import HeadActors, SpareRanks
from .attempts import Attempts
from .callback import RestartOnlyWhereDecided
from .failure_policy import Asked, Decision, End, Relocate, Shrink, decide, failures_left
from .less_memory import forget_found, lowered
from .ray_trainer import FitSettings, FitThread, build_trainer, watch
from .relocation import MoveWatch, move


@dataclass(frozen=True)
class Fitted:
    """How training ended.

    interrupted: whether Ctrl-C ended it; snapshot: the recorder's last; error: what Ray raised
    ground: of the last fit
    """

    interrupted: bool
    end: End
    snapshot: dict[str, Any]
    error: BaseException | None
    ground: Ground


def fit(run: RunSession, train: TrainConfig, ground: Ground, actors: HeadActors) -> Fitted:
    """Train to the end. After each fit `failure_policy` decides whether another one continues from the checkpoint."""
    run.enter(RunState.TRAINING, "training")
    recorder, store_actor = actors.recorder, actors.store
    store, spare = StoreClient(store_actor), SpareRanks()
    features = features_of_head(run, train, ground)
    while True:
        recorder.pause(False)
        run.registry.forget_ranks(run.id)
        ranks = ground.placement.ranks
        moves = MoveWatch(run.registry, run.id, recorder, ranks, partial(most_ranks, run, ranks))
        thread = fit_thread(run, train, ground, recorder, store, store_actor, features)
        interrupted = watch(thread, partial(look, run, recorder, moves, spare), partial(ask_to_stop, run))
        decision = after_fit(run, recorder, moves, thread.error)
        if interrupted or not isinstance(decision, Shrink | Relocate):
            break
        if isinstance(decision, Shrink):
            train = shrink(run, train, decision)
            run.keep_settled(train)
        else:
            ground = move(run, ground, train, store, decision)
    with suppress(StoreError, OSError):  # a full disk; publishing says so itself
        store.begin_attempt()  # late ranks can write nothing more, and half-written checkpoints are removed
    last = recorder.snapshot()
    show_end(run, last)
    end = decision if isinstance(decision, End) else End("training" if thread.error else None)
    return Fitted(interrupted, end, last, thread.error, ground)


def features_of_head(run: RunSession, train: TrainConfig, ground: Ground) -> HeadFeatures | None:
    """Those of pictures, where the run has some and the head shall keep them."""
    if train.vision.cache != "head" or not len(ground.source.pictures):
        return None
    return start_features(run.id, train.vision.head_cache_bytes)


def after_fit(run: RunSession, recorder: RecorderClient, moves: MoveWatch, error: BaseException | None) -> Decision:
    """Decide how training continues, by the events of this launch in the registry."""
    result = recorder.snapshot()["result"]
    asked = Asked(
        run.config.cluster.max_failures,
        moves.asked,
        stop=run.registry.stop_requested(run.id),
        saved=result is not None and bool(result["stopped"]),
    )
    return decide(run.registry.launch_events(run.id), error, asked)


def shrink(run: RunSession, train: TrainConfig, decision: Shrink) -> TrainConfig:
    """Lower what a rank holds in memory, and tell it as an event. Raises UserError where nothing is left to lower."""
    lower = lowered(train, decision.cause, run.config.train)
    run.tell(EventKind.OUT_OF_MEMORY, lower.sentence, dict(lower.facts))
    forget_found(run.registry.launch_events(run.id))
    run.registry.transition(run.id, RunState.RESTARTING, "out of memory")
    return lower.train


def fit_thread(
    run: RunSession,
    train: TrainConfig,
    ground: Ground,
    recorder: RecorderClient,
    store: StoreClient,
    store_actor: HeadActor,
    features: HeadFeatures | None,
) -> FitThread:
    """Begin one fit. Ranks of earlier attempts can write nothing more."""
    cluster = run.config.cluster
    attempts = Attempts(store, recorder, store.begin_attempt())
    callback = RestartOnlyWhereDecided(recorder, ground.placement, ground.folders, cluster.max_failures)
    left = max(0, failures_left(run.registry.launch_events(run.id), cluster.max_failures))
    filesystem = store_filesystem(store_actor)
    settings = FitSettings(f"launch-{attempts.before}", ground.placement, filesystem, "", left, attempts, callback)
    faults = FaultPolicy(cluster.watchdog.limits(), cluster.on_checkpoint_failure == "stop")
    digest = ground.data.report.digest
    changes, adapters = run.accepts_changes, ground.adapters
    task = RankTask(train, ground.source, ground.folders, recorder, store, faults, digest, changes, adapters, features)
    thread = FitThread(build_trainer(task, settings))
    thread.start()
    PHASES.enter("training")
    return thread


def look(run: RunSession, recorder: RecorderClient, moves: MoveWatch, spare: SpareRanks) -> None:
    """Show progress and look for a reason to move. Ranks train on while the registry cannot be read."""
    try:
        snapshot = recorder.snapshot()
        if step := snapshot["step"]:
            ending = step["step"] == step["total_steps"]
            facts = "scoring and saving" if ending else training_facts(step, snapshot["eval"])
            run.display.advance(step["step"], step["total_steps"], facts)
        run.tell_of_stall(snapshot["hangs"])
        spare.look(snapshot)
        moves.look()
    except (DiskFull, RegistryLost, RegistryDamaged) as error:
        run.note_once(str(error))


def show_end(run: RunSession, snapshot: dict[str, Any]) -> None:
    """Show the figures of the whole run in place of those of its last step."""
    if step := snapshot["step"]:
        figures = run_facts(run.registry.figures(run.id), snapshot["eval"])
        early = (snapshot["result"] or {}).get("stopped_early")
        run.display.advance(step["step"], step["step"] if early else step["total_steps"], figures)


def ask_to_stop(run: RunSession) -> None:
    run.registry.request_stop(run.id)
    run.note("stopping: a checkpoint is saved after this step; press Ctrl-C again to leave at once")

"""Makes the run's result after training: answers on the evaluation set, the published folder, its delivery."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gemfleet.cluster.checkpoint_store.client import StoreClient
from gemfleet.cluster.errors import ClusterError
from gemfleet.cluster.inventory import wait_for_resources
from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.cluster.registry.run_registry import RunState
from gemfleet.launcher.config.schema import PredictConfig
from gemfleet.launcher.result.compare import CannotCompareError, compare_on_cluster
from gemfleet.launcher.result.delivery.deliver import deliver_folder
from gemfleet.launcher.result.predict import predict_on_cluster, write_predictions
from gemfleet.launcher.result.public_names import public_name, renamed, written_names
from gemfleet.launcher.result.publish import Publication, publish
from gemfleet.launcher.result.publish_evaluation import publish_evaluation
from gemfleet.train.config.data_section import listed
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.loop import UNCHANGED
from gemfleet.train.model.comparison import Comparison

from .outcome import Outcome, TrainingFailedError
from .prepared import Ground
from .session import RunSession
from .signals import SIGNALS

ROOM_SECONDS = 120.0


@dataclass(frozen=True)
class Trained:
    """What training left.

    train: the settings it trained with; checkpoint: the newest, None where nothing was trained
    ground: of the last fit; result: rank 0's `TrainResult`
    """

    train: TrainConfig
    checkpoint: Path | None
    ground: Ground
    result: dict[str, Any]

    @property
    def stopped(self) -> bool:
        return bool(self.result["stopped"])


def newest_checkpoint(run: RunSession, store: StoreClient, result: dict[str, Any] | None) -> Path:
    """The folder of the newest verified checkpoint. Raises TrainingFailedError where there is none."""
    run.enter(RunState.PUBLISHING, "publishing")
    newest, damaged = store.newest_verified()
    for sentence in damaged:
        run.note(f"a damaged checkpoint is passed over: {sentence}")
    if newest is None or not result:
        raise TrainingFailedError("training ended, but no checkpoint of it is on the head", run.folder / "logs")
    if newest.step != result["steps"]:
        run.note(f"the newest whole checkpoint is of step {newest.step}; training ended at step {result['steps']}")
    return store.at_hand(newest.step)


def finish(run: RunSession, trained: Trained, interrupted: bool) -> Outcome:
    """Predict, publish, deliver, and end the run as succeeded or stopped. Raises TrainingFailedError, DeliveryError."""
    if trained.result.get("adapter_changed") is False:
        run.tell(EventKind.UNCHANGED, UNCHANGED)
    predict_answers(run, trained)
    try:
        output = publish_and_deliver(run, trained)
    except OSError as error:  # most likely a full disk
        message = f"the result could not be written ({error}); `gemfleet checkpoints {run.id}` has the whole checkpoint"
        raise TrainingFailedError(message, run.folder / "logs") from error
    state = RunState.STOPPED if trained.stopped else RunState.SUCCEEDED
    SIGNALS.ending()
    run.settle(state)
    return Outcome(run.id, state, output, interrupted, {**trained.result, "figures": run.registry.figures(run.id)})


def predict_answers(run: RunSession, trained: Trained) -> None:
    """Answer the evaluation set, if the configuration asks for it and nobody stopped the run."""
    config = run.config.predict
    if config is None and trained.checkpoint is None:
        write_predictions(run.folder / "predictions", [], trained.result["eval_loss"])
    if config is None or trained.stopped:
        return
    run.display.phase("predicting")
    ground = trained.ground
    size = ground.placement
    # The ranks have ended. Their resources come free a moment later.
    wait_for_resources(size.ranks, size.cpus_per_rank, size.gpus_per_rank, ROOM_SECONDS, run.note)
    predictions = []
    if ground.source.eval_sets:
        arguments = (ground.source, trained.checkpoint, ground.folders, size, config, trained.train)
        predictions = predict_on_cluster(*arguments, run.display.advance)
    metrics = write_predictions(run.folder / "predictions", predictions, trained.result["eval_loss"])
    run.note("predictions: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
    run.display.phase("publishing")


def publish_and_deliver(run: RunSession, trained: Trained) -> Path:
    """Publish the result and return its folder. Deliver it, unless somebody stopped the run. Raises DeliveryError."""
    asked, config = run.config.train, run.config.output
    steps = run.registry.metrics(run.id, kind="step")
    names = written_names(asked, trained.train)
    facts = card_facts(asked, steps, trained, names)
    if trained.checkpoint is None:
        output = publish_evaluation(run.folder, asked, facts)
    else:
        ground = trained.ground
        publication = Publication(run.folder, trained.checkpoint, ground.model, asked.model, config, facts, names)
        compare = None if trained.stopped or not config.compare else partial(compare_forms, run, trained)
        output = publish(publication, run.display.advance, compare)
    if config.deliver and trained.stopped:
        run.note(f"the run was stopped, so its result is not delivered; `gemfleet push {run.id}` does it")
    elif config.deliver:
        run.display.phase("delivering")
        run.note(deliver_folder(output, config.deliver, run.id, run.display.advance))
    return output


def compare_forms(run: RunSession, trained: Trained, folder: Path) -> Comparison | None:
    """Compare what is in `folder` with what was trained. None, and a note, where that cannot be done.

    Raises TrainingFailedError, which says what differs by more than rounding.
    """
    assert trained.checkpoint is not None
    run.display.phase("comparing")
    ground, predict = trained.ground, run.config.predict or PredictConfig()
    size, count = ground.placement, run.config.output.compare
    try:
        wait_for_resources(1, size.cpus_per_rank, size.gpus_per_rank, ROOM_SECONDS, run.note)
        arguments = (ground.folders, size, trained.train, count, predict.answer_after)
        comparison = compare_on_cluster(ground.source, trained.checkpoint, folder, *arguments)
    except (CannotCompareError, ClusterError) as error:
        run.tell(EventKind.NOT_COMPARED, f"the result was not compared with what was trained: {error}")
        return None
    run.note(comparison.describe())
    if comparison.problems:
        message = "; ".join(comparison.problems)
        kept = f"nothing was published, and the checkpoints stay: gemfleet checkpoints {run.id}"
        raise TrainingFailedError(f"{message}; {kept}", run.folder / "logs")
    run.display.phase("publishing")
    return comparison


def card_facts(
    asked: TrainConfig, steps: Sequence[Mapping[str, Any]], trained: Trained, names: Mapping[str, str]
) -> dict[str, Any]:
    """What the model card says beyond the checkpoint's own files.

    steps: the records of all steps; names: what to write in place of paths of this machine
    """
    rates = [record["tokens_per_second"] for record in steps]
    return {
        "data": listed([public_name(found.path) for found in asked.data.train_sets()]),
        "format": trained.ground.data.report.format,
        "chat_template": asked.data.chat_template,
        "data_report": renamed(trained.ground.data.report.summary(), names),
        "ranks": trained.ground.placement.describe(),
        "device": trained.result.get("device"),
        "tokens_per_second": float(statistics.median(rates)) if rates else None,
        "state": "stopped" if trained.stopped else "succeeded",
    }

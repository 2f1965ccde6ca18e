"""Makes the run's result after training: answers on the evaluation set, the published folder, its delivery."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gemfleet.cluster.checkpoint_store.shelf import Shelf
from gemfleet.cluster.errors import ClusterError, StoreError
from gemfleet.cluster.inventory import wait_for_resources
from gemfleet.cluster.registry.event_kinds import EventKind
from gemfleet.cluster.registry.run_registry import RunState
from gemfleet.launcher.config.schema import PredictConfig
from gemfleet.launcher.result.again import keep, late_facts
from gemfleet.launcher.result.answered_pictures import keep_pictures
from gemfleet.launcher.result.chosen import Picked, pick
from gemfleet.launcher.result.compare import CannotCompareError, compare_on_cluster
from gemfleet.launcher.result.delivery.deliver import deliver_folder
from gemfleet.launcher.result.predict import predict_on_cluster, write_predictions
from gemfleet.launcher.result.public_names import public_name, renamed, written_names
from gemfleet.launcher.result.publish import Publication, publish
from gemfleet.launcher.result.publish_evaluation import publish_evaluation
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.config.sections.set_names import listed
from gemfleet.train.model.comparison import Comparison
from gemfleet.train.model.predict import Prediction
from gemfleet.train.step.outcome import UNCHANGED

from .outcome import Outcome, TrainingFailedError
from .prepared import Ground
from .session import RunSession
from .signals import SIGNALS

ROOM_SECONDS = 120.0


@dataclass(frozen=True)
class Trained:
    """What training left.

    train: the settings it trained with; picked: the checkpoint to publish, None where nothing was trained
    ground: of the last fit; result: rank 0's `TrainResult`
    """

    train: TrainConfig
    picked: Picked | None
    ground: Ground
    result: dict[str, Any]

    @property
    def stopped(self) -> bool:
        return bool(self.result["stopped"])

    @property
    def eval_loss(self) -> float | None:
        """Of the checkpoint to publish; of the base where nothing was trained."""
        return self.result["eval_loss"] if self.picked is None else self.picked.chosen.eval_loss


def picked_checkpoint(run: RunSession, shelf: Shelf, result: dict[str, Any] | None) -> Picked:
    """The checkpoint that `output.checkpoint` asks for. Raises TrainingFailedError where there is none."""
    run.enter(RunState.PUBLISHING, "publishing")
    try:
        picked, damaged = pick(shelf, run.config.output.checkpoint)
    except StoreError as error:
        message = (
            f"training ended, but its result cannot be published: {error}; `gemfleet publish {run.id}` does it later"
        )
        raise TrainingFailedError(message, run.folder / "logs") from error
    if not result:
        raise TrainingFailedError("training ended, but no rank told its result", run.folder / "logs")
    for sentence in damaged:
        run.note(f"a damaged checkpoint is passed over: {sentence}")
    newest = json.loads(picked.history)["global_step"]
    if newest != result["steps"]:
        run.note(f"the newest whole checkpoint is of step {newest}; training ended at step {result['steps']}")
    return picked


def finish(run: RunSession, trained: Trained, interrupted: bool) -> Outcome:
    """Predict, publish, deliver, and end the run as succeeded or stopped. Raises TrainingFailedError, DeliveryError."""
    if trained.result.get("adapter_changed") is False:
        run.tell(EventKind.UNCHANGED, UNCHANGED)
    if early := trained.result.get("stopped_early"):
        run.tell(EventKind.STOPPED_EARLY, early)
    predict_answers(run, trained)
    try:
        output = publish_and_deliver(run, trained)
    except OSError as error:  # most likely a full disk
        message = f"the result could not be written ({error}); `gemfleet checkpoints {run.id}` has the whole checkpoint"
        raise TrainingFailedError(message, run.folder / "logs") from error
    state = RunState.STOPPED if trained.stopped else RunState.SUCCEEDED
    SIGNALS.ending()
    run.settle(state)
    published = None if trained.picked is None else trained.picked.chosen.reason
    facts = {"published": published, "figures": run.registry.figures(run.id)}
    return Outcome(run.id, state, output, interrupted, {**trained.result, **facts})


def predict_answers(run: RunSession, trained: Trained) -> None:
    """Answer the evaluation set, if the configuration asks for it and nobody stopped the run."""
    config = run.config.predict
    if config is None and trained.picked is None:
        write_predictions(run.folder / "predictions", [], trained.eval_loss)
    if config is None or trained.stopped:
        return
    run.display.phase("predicting")
    ground = trained.ground
    size = ground.placement
    # The ranks have ended. Their resources come free a moment later.
    wait_for_resources(size.ranks, size.cpus_per_rank, size.gpus_per_rank, ROOM_SECONDS, run.note)
    predictions, pictures = list[Prediction](), list[list[str]]()
    if ground.source.eval_sets:
        checkpoint = None if trained.picked is None else trained.picked.folder
        arguments = (ground.source, checkpoint, ground.folders, size, config, trained.train)
        predictions, pictures = predict_on_cluster(*arguments, run.display.advance)
    metrics = write_predictions(run.folder / "predictions", predictions, trained.eval_loss)
    keep_pictures(run.folder, pictures)
    if trained.picked is not None:
        keep(run.folder, {"predicted": trained.picked.chosen.step})
    run.note("predictions: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
    run.display.phase("publishing")


def publish_and_deliver(run: RunSession, trained: Trained) -> Path:
    """Publish the result and return its folder. Deliver it, unless somebody stopped the run. Raises DeliveryError."""
    asked, config = run.config.train, run.config.output
    names = written_names(asked, trained.train)
    steps, state = run.registry.metrics(run.id, kind="step"), "stopped" if trained.stopped else "succeeded"
    late = late_facts(steps, trained.result.get("device"), state)
    facts = early_facts(asked, trained.ground, names) | late
    picked = trained.picked
    if picked is None:
        output = publish_evaluation(run.folder, asked, facts)
    else:
        model = trained.ground.model
        publication = Publication(run.folder, picked.folder, model, asked.model, config, facts, names, picked)
        compare = None if trained.stopped or not config.compare else partial(compare_forms, run, trained)
        output = publish(publication, run.display.advance, compare)
        run.tell(EventKind.PUBLISHED, f"published {picked.chosen.reason}", asdict(picked.chosen))
    if config.deliver and trained.stopped:
        run.note(f"the run was stopped, so its result is not delivered; `gemfleet push {run.id}` does it")
    elif config.deliver:
        run.display.phase("delivering")
        run.note(deliver_folder(output, config.deliver, run.id, run.display.advance))
    return output


def keep_early_facts(run: RunSession, train: TrainConfig, ground: Ground) -> None:
    """Keep in the run's folder what its result needs, so that `gemfleet publish` can make it whatever happens."""
    asked = run.config.train
    names = written_names(asked, train)
    keep(run.folder, {"model": str(ground.model), "names": names, "facts": early_facts(asked, ground, names)})


def compare_forms(run: RunSession, trained: Trained, folder: Path) -> Comparison | None:
    """Compare what is in `folder` with what was trained. None, and a note, where that cannot be done.

    Raises TrainingFailedError, which says what differs by more than rounding.
    """
    assert trained.picked is not None
    run.display.phase("comparing")
    ground, predict = trained.ground, run.config.predict or PredictConfig()
    size, count = ground.placement, run.config.output.compare
    try:
        wait_for_resources(1, size.cpus_per_rank, size.gpus_per_rank, ROOM_SECONDS, run.note)
        arguments = (ground.folders, size, trained.train, count, predict.answer_after)
        comparison = compare_on_cluster(ground.source, trained.picked.folder, folder, *arguments)
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


def early_facts(asked: TrainConfig, ground: Ground, names: Mapping[str, str]) -> dict[str, Any]:
    """What the model card says beyond the checkpoint's own files, as far as it is known before training.

    names: what to write in place of paths of this machine
    """
    return {
        "data": listed([public_name(found.path) for found in asked.data.train_sets()]),
        "format": ground.data.report.format,
        "chat_template": asked.data.chat_template,
        "pictures": ground.data.report.pictures,
        "data_report": renamed(ground.data.report.summary(), names),
        "ranks": ground.placement.describe(),
    }

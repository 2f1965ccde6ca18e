"""From a trained checkpoint to its result: answers on the evaluation set, the published folder, its delivery."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemfleet.cluster.inventory import wait_for_resources
from gemfleet.train.config.schema import TrainConfig

from ..result.delivery.deliver import deliver_folder
from ..result.predict import predict_on_cluster, write_predictions
from ..result.public_names import public_name, renamed, written_names
from ..result.publish import Publication, publish
from ..result.publish_evaluation import publish_evaluation
from .admission import Ground

if TYPE_CHECKING:
    from .launch import Run

ROOM_SECONDS = 120.0


@dataclass(frozen=True)
class Trained:
    """What training left, and what it stood on at the end. checkpoint: None where nothing was trained."""

    checkpoint: Path | None
    ground: Ground
    result: dict[str, Any]

    @property
    def stopped(self) -> bool:
        return bool(self.result["stopped"])


def predict_answers(run: Run, trained: Trained) -> None:
    """Answers on the evaluation set, where they are asked for and the run came to its end."""
    config = run.config.predict
    if config is None and trained.checkpoint is None:
        write_predictions(run.folder / "predictions", [], trained.result["eval_loss"])
    if config is None or trained.stopped:
        return
    run.display.phase("predicting")
    ground = trained.ground
    size = ground.placement
    # The ranks of training have ended; their resources come free a moment later.
    wait_for_resources(size.workers, size.cpus_per_worker, size.gpus_per_worker, ROOM_SECONDS, run.note)
    predictions = []
    if ground.source.has_eval:
        arguments = (ground.source, trained.checkpoint, ground.folders, size, config, run.config.train)
        predictions = predict_on_cluster(*arguments, run.display.advance)
    metrics = write_predictions(run.folder / "predictions", predictions, trained.result["eval_loss"])
    run.note("predictions: " + ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
    run.display.phase("publishing")


def publish_and_deliver(run: Run, trained: Trained) -> Path:
    """The folder of the result. A stopped run is not delivered by itself. Raises DeliveryError."""
    steps = run.registry.metrics(run.id, kind="step")
    names = written_names(run.asked, run.config.train)
    facts = card_facts(run.asked, steps, trained, names)
    config = run.config.output
    if trained.checkpoint is None:
        output = publish_evaluation(run.folder, run.asked, facts)
    else:
        publication = Publication(
            run.folder, trained.checkpoint, trained.ground.model, run.asked.model, config, facts, names
        )
        output = publish(publication, run.display.advance)
    if config.deliver and trained.stopped:
        run.note(f"the run was stopped, so its result is not delivered; `gemfleet push {run.id}` does it")
    elif config.deliver:
        run.display.phase("delivering")
        run.note(deliver_folder(output, config.deliver, run.id, run.display.advance))
    return output


def card_facts(
    asked: TrainConfig, steps: Sequence[Mapping[str, Any]], trained: Trained, names: Mapping[str, str]
) -> dict[str, Any]:
    """What the card says beyond the checkpoint's own files. `steps` are the records of the optimizer steps."""
    rates = [record["tokens_per_second"] for record in steps]
    return {
        "data": public_name(asked.data.train),
        "format": trained.ground.data.report.format,
        "data_report": renamed(trained.ground.data.report.summary(), names),
        "ranks": trained.ground.placement.describe(),
        "device": trained.result.get("device"),
        "tokens_per_second": float(statistics.median(rates)) if rates else None,
        "state": "stopped" if trained.stopped else "succeeded",
    }

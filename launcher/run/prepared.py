"""What the ranks of one fit stand on: their places, the model on each node, and the data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gemfleet.cluster.registry.run_registry import RunState
from gemfleet.cluster.staging.stage import stage_folder
from gemfleet.launcher.placement import Placement
from gemfleet.train.config.home import gemfleet_home
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.model.base_check import check_base
from gemfleet.train.model.resolve import check_context, resolve_model_folder
from gemfleet.train.model.weight_files import beside_note

from .data_tasks import RayBlockSource
from .prepare_data import PreparedData, pack_on_cluster, tokenise_on_cluster
from .session import RunSession


@dataclass(frozen=True)
class Ground:
    """model: the model's folder on the head; folders: where it is on each node, by node id
    data: tokenised once; source: packed for this number of ranks
    """

    placement: Placement
    model: Path
    folders: dict[str, str]
    data: PreparedData
    source: RayBlockSource


def stage(run: RunSession, train: TrainConfig) -> tuple[Path, dict[str, str]]:
    """Bring the model to the head and to each node. Returns its folder on the head, and on each node by node id."""
    run.enter(RunState.STAGING, "staging model")
    folder = resolve_model_folder(train.model)
    check_context(folder, train.data.max_length)
    check_base(folder)
    if note := beside_note(folder):
        run.note(note)
    return folder, stage_to(run, folder, {})


def stage_to(run: RunSession, folder: Path, known: dict[str, str]) -> dict[str, str]:
    """The folder of each living node that holds the model, brought to those that are not `known` to hold it."""
    cache = str(gemfleet_home() / "cache" / "staged")

    def show(sent: int, total: int) -> None:
        run.display.advance(sent >> 20, total >> 20, "MiB")

    staged = stage_folder(folder, cache, show, known=known)
    if len(staged.folders) > 1 and not (known and not staged.receivers):
        run.note(staged.describe())
    return staged.folders


def prepare_data(
    run: RunSession, train: TrainConfig, placement: Placement, model: Path, folders: dict[str, str]
) -> Ground:
    """Tokenise and pack on the cluster; say how many rows were used and which were not."""
    run.enter(RunState.PREPARING_DATA, "preparing data")
    data = tokenise_on_cluster(train, folders, run.display.bars)
    source = pack_on_cluster(data, train, placement.workers, 0, run.display.bars)
    run.note(data.report.summary())
    run.heed_stop("prepared its data")
    return Ground(placement, model, folders, data, source)

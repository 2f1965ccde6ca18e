"""Stages the model and prepares the data: the ground on which the ranks of a fit stand."""

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

from .data.block_source import RayBlockSource
from .data.kept_view import ask_examples, keep_view
from .data.pack import pack_on_cluster
from .data.tokenise import PreparedData, tokenise_on_cluster
from .session import RunSession


@dataclass(frozen=True)
class Ground:
    """What the ranks of one fit need.

    model: the model's folder on the head; folders: its folder on each node, by node id
    data: tokenised once for the run; source: the same data, packed for this number of ranks
    """

    placement: Placement
    model: Path
    folders: dict[str, str]
    data: PreparedData
    source: RayBlockSource


def stage(run: RunSession, train: TrainConfig) -> tuple[Path, dict[str, str]]:
    """Bring the model to the head and to each node. Returns its folder on the head, and its folder on each node."""
    run.enter(RunState.STAGING, "staging model")
    folder = resolve_model_folder(train.model)
    check_context(folder, train.data.max_length)
    check_base(folder)
    if note := beside_note(folder):
        run.note(note)
    return folder, stage_to(run, folder, {})


def stage_to(run: RunSession, folder: Path, known: dict[str, str]) -> dict[str, str]:
    """Copy the model to all living nodes but those of `known`. Returns its folder on each node, by node id."""
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
    """Tokenise and pack the data on the cluster. Say how many rows are used, and which are not."""
    run.enter(RunState.PREPARING_DATA, "preparing data")
    data = tokenise_on_cluster(train, folders, run.display.bars)
    examples = ask_examples(data, folders)
    source = pack_on_cluster(data, train, placement.ranks, 0, run.display.bars)
    keep_view(run.folder, train, data, placement.ranks, examples)
    for line in data.report.summary().splitlines():
        run.note(line)
    run.heed_stop("prepared its data")
    return Ground(placement, model, folders, data, source)

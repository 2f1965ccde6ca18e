"""Stages the model and prepares the data: the ground on which the ranks of a fit stand."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gemfleet.cluster.phases import PHASES, keep_phases
from gemfleet.cluster.registry.recorder_client import RecorderClient
from gemfleet.cluster.registry.run_registry import RunState
from gemfleet.cluster.staging.stage import stage_folder
from gemfleet.launcher.placement import Placement
from gemfleet.train.config.home import cache_folder
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.config.sections.set_names import listed
from gemfleet.train.data.pictures.format import PictureFormat
from gemfleet.train.data.prepared.store import prepared_cache
from gemfleet.train.model.base_check import check_base
from gemfleet.train.model.resolve import check_context, resolve_model_folder
from gemfleet.train.model.weight_files import beside_note

from .data.block_source import RayBlockSource
from .data.kept_view import ask_examples, keep_view
from .data.pack import pack_on_cluster
from .data.tokenise import PreparedData, tokenise_on_cluster
from .session import RunSession
from .starting_adapter import check_adapter

TRAIN_SECONDS = 60.0  # after them the rest is packed all the same


@dataclass(frozen=True)
class Ground:
    """What the ranks of one fit need.

    model: the model's folder on the head; folders: its folder on each node, by node id
    adapters: the folder of the adapter to go on from on each node; empty: a new one
    data: tokenised once for the run; source: the same data, packed for this number of ranks
    """

    placement: Placement
    model: Path
    folders: dict[str, str]
    data: PreparedData
    source: RayBlockSource
    adapters: dict[str, str] = field(default_factory=dict)


def stage(run: RunSession, train: TrainConfig) -> tuple[Path, dict[str, str]]:
    """Bring the model to the head and to each node. Returns its folder on the head, and its folder on each node."""
    run.enter(RunState.STAGING, "staging model")
    folder = resolve_model_folder(train.model)
    check_context(folder, train.data.max_length)
    check_base(folder)
    if note := beside_note(folder):
        run.note(note)
    return folder, stage_to(run, folder, {})


def stage_adapter(run: RunSession, train: TrainConfig, model: Path, known: dict[str, str]) -> dict[str, str]:
    """Copy the adapter to go on from to all nodes but those of `known`. Empty where training begins with a new one.

    Raises UserError where it does not fit the base.
    """
    if train.adapter is None:
        return {}
    if not known and (note := check_adapter(Path(train.adapter), train, model)):
        run.note(note)
    return stage_to(run, Path(train.adapter), known)


def stage_to(run: RunSession, folder: Path, known: dict[str, str]) -> dict[str, str]:
    """Copy a model or an adapter to all living nodes but those of `known`. Returns its folders by node id."""

    def show(sent: int, total: int) -> None:
        run.display.advance(sent >> 20, total >> 20, "MiB")

    staged = stage_folder(folder, str(cache_folder("staged")), show, known=known)
    if len(staged.folders) > 1 and not (known and not staged.receivers):
        run.note(staged.describe())
    return staged.folders


def prepare_data(
    run: RunSession,
    train: TrainConfig,
    placement: Placement,
    model: Path,
    folders: dict[str, str],
    adapters: dict[str, str],
    recorder: RecorderClient,
) -> Ground:
    """Tokenise and pack the data on the cluster. Say how many rows are used, and which are not.

    What ranks do not need first is packed once they train, or after `TRAIN_SECONDS`: before that it would keep them
    from starting. The search for a micro-batch may read any step, so then nothing is held back.
    """
    run.enter(RunState.PREPARING_DATA, "preparing data")
    cache = prepared_cache(train.data.cache_bytes, model)
    data = tokenise_on_cluster(train, folders, run.display.bars, cache, PictureFormat.of(model))
    for phases in data.phases:
        keep_phases(run.folder, phases)
    PHASES.enter("packs")
    examples = ask_examples(data, folders)
    data_ranks = train.data_ranks(placement.ranks)
    saved = run.registry.checkpoints(run.id)  # the ranks look themselves; mostly they begin at the newest
    begin = saved[-1]["step"] if saved else 0
    later = recorder.training(TRAIN_SECONDS) if isinstance(train.batch.micro, int) else None
    source = pack_on_cluster(data, train, data_ranks, 0, run.display.bars, begin, later)
    keep_view(run.folder, train, data, data_ranks, examples)
    if data.reused:
        run.note(f"Used again what an earlier run tokenised of {listed(data.reused)}.")
    for line in data.report.summary().splitlines():
        run.note(line)
    run.heed_stop("prepared its data")
    return Ground(placement, model, folders, data, source, adapters)

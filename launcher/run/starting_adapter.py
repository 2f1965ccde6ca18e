"""Brings the adapter that `train.adapter` names into the run's folder, so that a resumed run has the same one."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from gemfleet.cluster.errors import UnknownRun
from gemfleet.cluster.registry.run_queries import NO_LIMIT
from gemfleet.launcher.config.schema import LaunchConfig
from gemfleet.launcher.data_view.tokenizer import model_here
from gemfleet.launcher.result.public_names import public_name
from gemfleet.launcher.runs.registry import registry_of
from gemfleet.launcher.sources.fetch import fetch_source, is_remote
from gemfleet.train.checkpoint.lineage import NEW, base_digest
from gemfleet.train.config.home import gemfleet_home
from gemfleet.train.config.paths import HUB_ID, local_path
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.errors import UserError
from gemfleet.train.model.base_check import check_base
from gemfleet.train.model.gemma import lora_targets
from gemfleet.train.model.starting_adapter import (
    ADAPTER_FILE,
    FILES,
    ORIGIN_FILE,
    Origin,
    check_its_base,
    check_options,
    check_tensors,
    checked_folder,
    origin_of,
    resolve_adapter_folder,
)

FOLDER = "adapter"  # in a run's folder


def with_kept_adapter(config: LaunchConfig, run_folder: Path) -> LaunchConfig:
    """The configuration of a resumed run, with its own copy of the adapter in place of the same words of a person."""
    kept, asked = run_folder / FOLDER, config.train.adapter
    if asked is None or not (kept / ORIGIN_FILE).is_file():
        return config
    if json.loads((kept / ORIGIN_FILE).read_text())["asked"] != asked:
        return config
    return config.model_copy(update={"train": config.train.model_copy(update={"adapter": str(kept)})})


def check_starting_adapter(train: TrainConfig) -> None:
    """Raise UserError for an adapter on this machine that does not fit. One that is elsewhere is not fetched."""
    if train.adapter is not None and not is_remote(train.adapter):
        folder, _ = run_adapter(train.adapter) or local_adapter(train.adapter) or (None, "")
        if folder is not None:
            check_adapter(folder, train)


def check_adapter(folder: Path, train: TrainConfig, base: Path | None = None) -> str | None:
    """Compare an adapter with the settings, and with the base if that is here. Returns a note. Raises UserError.

    base: its folder; None: where `train.model` is on this machine, if it is
    """
    check_options(checked_folder(folder), train.lora)
    base = base or model_here(train.model)
    if base is None or not base.is_dir():
        return None
    model = check_base(base)
    check_tensors(folder, model, lora_targets(model, train.lora.target_modules))
    return check_its_base(folder, train.model, base_digest(base))


def adapter_origin(train: TrainConfig) -> Origin | None:
    """With what training began, as far as it is known without fetching anything."""
    if train.adapter is None:
        return NEW
    folder, name = run_adapter(train.adapter) or (Path(train.adapter).expanduser(), public_name(train.adapter))
    return origin_of(folder, name) if (folder / ADAPTER_FILE).is_file() else None


def with_adapter(train: TrainConfig, run_folder: Path) -> TrainConfig:
    """The settings with the path of the run's own copy of the adapter, checked as far as the base is here."""
    if train.adapter is None:
        return train
    kept = keep_adapter(train.adapter, run_folder)
    check_adapter(kept, train)
    return train.model_copy(update={"adapter": str(kept)})


def keep_adapter(asked: str, run_folder: Path) -> Path:
    """The run's own copy of the adapter, made where it is missing. Fetches a remote one. Raises UserError."""
    target = run_folder / FOLDER
    folder, name = run_adapter(asked) or (resolve_adapter_folder(fetched(asked)), public_name(asked))
    if folder.resolve() == target.resolve():
        return target
    origin = origin_of(checked_folder(folder), name)
    staging = Path(tempfile.mkdtemp(prefix=".adapter-", dir=run_folder))
    try:
        for file in FILES:
            if (folder / file).is_file():
                shutil.copyfile(folder / file, staging / file)
        (staging / ORIGIN_FILE).write_text(json.dumps({"name": origin.name, "asked": asked}) + "\n")
        shutil.rmtree(target, ignore_errors=True)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def fetched(asked: str) -> str:
    """The path of a copy of a remote adapter; anything else as it is."""
    return fetch_source(asked, gemfleet_home() / "cache" / "repositories")


def local_adapter(asked: str) -> tuple[Path, str] | None:
    """The folder of a path and its name; None for a hub id."""
    if local := local_path(asked):
        return checked_folder(local), public_name(asked)
    if not HUB_ID.fullmatch(asked):
        raise UserError(
            f"train.adapter is {asked!r}, which is no run here (`gemfleet runs`), no folder and no Hugging Face id"
        )
    return None


def run_adapter(asked: str) -> tuple[Path, str] | None:
    """The published folder of a run of this head, and the run and its step in words; None where it names no run.

    `latest` is the newest run that has published an adapter. Raises UserError for a word that names no run, or several,
    and where the run has published none.
    """
    home = gemfleet_home()
    if "/" in asked or Path(asked).expanduser().exists() or not (home / "gemfleet.db").exists():
        return None
    registry = registry_of(home)
    try:
        runs = registry.list_runs(limit=NO_LIMIT) if asked == "latest" else [registry.find_run(asked)]
    except UnknownRun as error:
        raise UserError(
            f"train.adapter is {asked!r}, which is no folder and no Hugging Face id, and {error}"
        ) from error
    ids = [run.id for run in runs]
    for run_id in ids:
        folder = home / "runs" / run_id / "output"
        for checkpoint in folder.glob("checkpoint-*"):
            return folder, f"run {run_id}, step {checkpoint.name.removeprefix('checkpoint-')}"
    remedy = f"; `gemfleet publish {ids[0]}` does it" if ids else ""
    raise UserError(f"train.adapter is {asked!r}, but no such run has published an adapter{remedy}")

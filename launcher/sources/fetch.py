"""Replaces the repositories that a configuration names by folders of this machine."""

from __future__ import annotations

import json
from pathlib import Path

from gemfleet.train.config import TrainConfig
from gemfleet.train.errors import UserError

from .address import is_git_source, parse_source
from .checkout import fetch_repository
from .git_command import Progress

DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
NOT_DATA = frozenset({"dataset_infos.json", "package.json"})


def names_repositories(train: TrainConfig) -> bool:
    """Whether the model or any of the data lies in a repository."""
    return any(
        source is not None and is_git_source(source) for source in (train.model, train.data.train, train.data.eval)
    )


def check_sources(train: TrainConfig) -> None:
    """Raise UserError for an address that would be refused, before anything starts."""
    for source in (train.model, train.data.train, train.data.eval):
        if source is not None and is_git_source(source):
            parse_source(source)


def fetch_sources(train: TrainConfig, cache: Path, progress: Progress | None = None) -> TrainConfig:
    """The same configuration with local folders in place of `git+` addresses; unchanged where there are none."""
    model = _fetched(train.model, cache, progress)
    data = train.data
    if is_git_source(data.train):
        files, evaluation = data_files(Path(_fetched(data.train, cache, progress)), data.train)
        given = data.eval if data.eval is not None or evaluation is None else str(evaluation)
        data = data.model_copy(update={"train": str(files), "eval": given})
    if data.eval is not None and is_git_source(data.eval):
        files, _ = data_files(Path(_fetched(data.eval, cache, progress)), data.eval)
        data = data.model_copy(update={"eval": str(files)})
    return train.model_copy(update={"model": model, "data": data})


def fetch_once(train: TrainConfig, cache: Path, memory: Path, progress: Progress | None = None) -> TrainConfig:
    """As `fetch_sources`, but a run that goes on keeps the commits it began with; `memory` names their folders.

    UserError where such a folder is gone and the repository stands elsewhere by now: the data would change.
    """
    known = json.loads(memory.read_text()) if memory.is_file() else None
    if known is None or not all(_there(path) for path in known.values()):
        fetched = fetch_sources(train, cache, progress)
        found = {"model": fetched.model, "train": fetched.data.train, "eval": fetched.data.eval}
        if known not in (None, found):
            gone = next(path for path in known.values() if not _there(path))
            raise UserError(f"the clone {gone} is gone, and its repository has moved on since; start a new run")
        memory.write_text(json.dumps(found, indent=2) + "\n")
        return fetched
    data = train.data.model_copy(update={"train": known["train"], "eval": known["eval"]})
    return train.model_copy(update={"model": known["model"], "data": data})


def _there(path: str | None) -> bool:
    """Whether a path still exists; names such as `demo` or a hub id are no paths of ours."""
    return path is None or not path.startswith("/") or Path(path).exists()


def data_files(folder: Path, source: str) -> tuple[Path, Path | None]:
    """What to train and to evaluate on in a repository of data, laid out as the hub's are: files at the top or in
    `data/`, perhaps named after their split."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return folder, None
    for place in (folder, folder / "data"):
        found = sorted(place.iterdir()) if place.is_dir() else []
        files = [path for path in found if path.suffix.lower() in DATA_SUFFIXES and path.name not in NOT_DATA]
        if files:
            return _by_split(files, place, source)
    raise UserError(f"the repository {source} has no {', '.join(DATA_SUFFIXES)} file at its top or in data/")


def _by_split(files: list[Path], place: Path, source: str) -> tuple[Path, Path | None]:
    train = [path for path in files if path.name.startswith("train")]
    held_out = [path for path in files if path.name.startswith(("validation", "valid", "eval", "test", "dev"))]
    if not held_out:
        return (files[0] if len(files) == 1 else place), None
    rest = train or [path for path in files if path not in held_out]
    if len(rest) != 1:
        raise UserError(
            f"the repository {source} holds {len(files)} data files with {held_out[0].name} among them; keep one file "
            "to train on and one to evaluate on, or name a folder of training files only"
        )
    preferred = min(held_out, key=lambda path: (not path.name.startswith(("valid", "eval", "dev")), path.name))
    return rest[0], preferred


def _fetched(source: str, cache: Path, progress: Progress | None) -> str:
    return str(fetch_repository(parse_source(source), cache, progress)) if is_git_source(source) else source

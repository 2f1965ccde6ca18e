"""Fetches the repositories and object stores that a configuration names, and puts the copies' paths in their place."""

from __future__ import annotations

import json
from pathlib import Path

from gemfleet.train.config.paths import found_at
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.data.files.file_readers import extensions, is_data
from gemfleet.train.errors import UserError

from .address import is_git_source, parse_source
from .checkout import fetch_repository
from .git_command import Progress
from .objects import fetch_objects, is_object_source, parse_object_address

NOT_DATA = frozenset({"dataset_infos.json", "package.json"})


def is_remote(source: str) -> bool:
    """Whether a model or data source has to be fetched: from a repository or an object store."""
    return is_git_source(source) or is_object_source(source)


def names_remote_sources(train: TrainConfig) -> bool:
    """Whether the model or any of the data has to be fetched."""
    return any(map(is_remote, _sources(train)))


def check_sources(train: TrainConfig) -> None:
    """Raise UserError for an address that fetching would refuse. Called before anything starts."""
    for source in (*_sources(train), *filter(None, [train.adapter])):
        if is_git_source(source):
            parse_source(source)
        elif is_object_source(source):
            parse_object_address(source)


def fetch_sources(train: TrainConfig, cache: Path, progress: Progress | None = None) -> TrainConfig:
    """Fetch all remote sources. Returns the settings with local paths in place of their addresses."""
    model = fetch_source(train.model, cache, progress)
    data, copies = train.data, dict[str, str]()
    for field, source in data.paths().items():
        if is_remote(source):
            files, evaluation = data_files(Path(fetch_source(source, cache, progress)), source)
            copies[field] = str(files)
            if field == "train.data.train" and data.eval is None and evaluation is not None:
                data = data.model_copy(update={"eval": str(evaluation)})
    data = data.with_paths(copies)
    return train.model_copy(update={"model": model, "data": data})


def fetch_once(train: TrainConfig, cache: Path, memory: Path, progress: Progress | None = None) -> TrainConfig:
    """As `fetch_sources`, but a resumed run keeps the copies with which it began. memory: the file that names them

    Raises UserError where such a copy is gone and its source has changed since, as the data would change.
    """
    known = json.loads(memory.read_text()) if memory.is_file() else None
    if known is None or not all(_there(path) for path in known.values()):
        fetched = fetch_sources(train, cache, progress)
        found = {"train.model": fetched.model, **fetched.data.paths()}
        if known not in (None, found):
            gone = next(path for path in known.values() if not _there(path))
            raise UserError(f"the copy {gone} is gone, and its source has changed since; start a new run")
        memory.write_text(json.dumps(found, indent=2) + "\n")
        return fetched
    data = train.data
    if data.eval is None and "train.data.eval" in known:
        data = data.model_copy(update={"eval": known["train.data.eval"]})
    return train.model_copy(update={"model": known["train.model"], "data": data.with_paths(known)})


def _sources(train: TrainConfig) -> list[str]:
    return [train.model, *train.data.paths().values()]


def _there(path: str) -> bool:
    """Whether a path still exists. `demo` and hub ids are no paths and count as existing."""
    return not path.startswith("/") or bool(found_at(path))


def data_files(folder: Path, source: str) -> tuple[Path, Path | None]:
    """The files to train on and to evaluate on, in the copy of a data set. The second is None if there is none.

    The copy is one file, or a folder like the hub's data sets: files at the top or in `data/`, perhaps named by split.
    Raises UserError for any other layout.
    """
    if folder.is_file():
        return folder, None
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return folder, None
    for place in (folder, folder / "data"):
        found = sorted(place.iterdir()) if place.is_dir() else []
        files = [path for path in found if is_data(path) and path.name not in NOT_DATA]
        if files:
            return _by_split(files, place, source)
    raise UserError(f"{source} has no {extensions()} file at its top or in data/")


def _by_split(files: list[Path], place: Path, source: str) -> tuple[Path, Path | None]:
    train = [path for path in files if path.name.startswith("train")]
    held_out = [path for path in files if path.name.startswith(("validation", "valid", "eval", "test", "dev"))]
    if not held_out:
        return (files[0] if len(files) == 1 else place), None
    rest = train or [path for path in files if path not in held_out]
    if len(rest) != 1:
        raise UserError(
            f"{source} holds {len(files)} data files with {held_out[0].name} among them; keep one file "
            "to train on and one to evaluate on, or name a folder of training files only"
        )
    preferred = min(held_out, key=lambda path: (not path.name.startswith(("valid", "eval", "dev")), path.name))
    return rest[0], preferred


def fetch_source(source: str, cache: Path, progress: Progress | None = None) -> str:
    """The path of a copy of a remote source. Any other source as it is."""
    if is_object_source(source):
        return str(fetch_objects(parse_object_address(source), cache, progress))
    return str(fetch_repository(parse_source(source), cache, progress)) if is_git_source(source) else source

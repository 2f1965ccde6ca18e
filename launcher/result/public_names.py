"""Names sources in all that is published: by a hub id or an address, never by a path of this machine."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from gemfleet.launcher.sources.fetch import is_remote
from gemfleet.train.config.paths import HUB_ID, local_path
from gemfleet.train.config.schema import TrainConfig
from gemfleet.train.data.demo import MODEL_FOLDER

HUB_CACHE = re.compile(r"(?:^|/)(?:models|datasets)--([\w.-]+?)--([\w.-]+)/snapshots/[^/]+/?$")
HUB_ADDRESS = re.compile(r"git\+https://huggingface\.co/([\w.-]+)/([\w.-]+?)(?:\.git)?/?(?:#main)?")
DEMO_ORIGIN = f"google/{MODEL_FOLDER}"
LOCAL_GIT = "git+file://"
PATH = re.compile(r"~/[^\n]+|/[^/\n]+/[^\n]+")  # not `/` or `/s`, which could be tokens
BOARD_FOLDER = re.compile(r"[A-Z][a-z]{2}\d\d(?:_\d\d-\d\d-\d\d)?")
BOARD_FILE = re.compile(r"(?:.*\.)?tfevents\.(\d+)")


def is_local(source: str) -> bool:
    """Whether a model or data source is a path of this machine."""
    if is_remote(source):
        return source.startswith(LOCAL_GIT)
    return source != "demo" and local_path(source) is not None


def is_hub_id(source: str) -> bool:
    """Whether a model or data source is the hub's `owner/name`."""
    return not is_local(source) and HUB_ID.fullmatch(source) is not None


def public_name(source: str) -> str:
    """A hub id or an address as given. For a path of this machine, its last part, or the hub id that it caches."""
    if not is_local(source):
        return source
    path = source.removeprefix(LOCAL_GIT).partition("#")[0] if source.startswith(LOCAL_GIT) else source
    if cached := HUB_CACHE.search(path):
        return f"{cached[1]}/{cached[2]}"
    return PurePosixPath(path).name or Path(path).resolve().name or "data"


def base_reference(model: str) -> str:
    """The base that `adapter_config.json` names, as a stranger finds it: a hub id, or the address of a repository.

    The demonstration's is the model whose 4-bit copy it trains on; the card says so. A folder has no name that others
    know: it is `./NAME`, which is no hub id, and a loader finds a base that lies there.
    """
    if model == "demo":
        return DEMO_ORIGIN
    name = public_name(model)
    if on_hub := HUB_ADDRESS.fullmatch(name):
        return f"{on_hub[1]}/{on_hub[2]}"
    return f"./{name}" if is_local(model) and not HUB_ID.fullmatch(name) else name


def written_names(asked: TrainConfig, used: TrainConfig) -> dict[str, str]:
    """The name to publish in place of each path of the run's sources, for each way to write that path.

    asked: the settings as the person wrote them; used: with copies in place of repositories and stores
    """
    before, first = asked.data.paths(), asked.data.train_sets()[0].path
    # A repository may hold an evaluation set that nobody named; it is then the training data's repository.
    pairs = [(used.model, asked.model), *((path, before.get(at, first)) for at, path in used.data.paths().items())]
    names: dict[str, str] = {}
    for path, source in pairs:
        for written in {path, source}:
            if written != public_name(source) and is_local(written):
                names |= dict.fromkeys(_ways_to_write(written), public_name(source))
    return names


def _ways_to_write(path: str) -> list[str]:
    if path.startswith(LOCAL_GIT):
        return [path]
    there = Path(path).expanduser()
    return [path, str(there), str(there.absolute()), str(there.resolve())]


def renamed(text: str, names: Mapping[str, str]) -> str:
    """The text with paths replaced by their names. A path without a slash stays, because it could be any word."""
    paths = sorted((path for path in names if "/" in path), key=len, reverse=True)
    if not paths:
        return text
    pattern = rf"(?<![\w.-])(?:{'|'.join(map(re.escape, paths))})(?![\w-])"
    return re.sub(pattern, lambda match: names[match[0]], text)


def without_paths(value: Any, names: Mapping[str, str]) -> Any:
    """A JSON value without paths of this machine: those in `names` get their name, others keep their last part."""
    if isinstance(value, dict):
        return {key: without_paths(inner, names) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_paths(inner, names) for inner in value]
    if not isinstance(value, str):
        return value
    known = names.get(value) or renamed(value, names)
    return PurePosixPath(known).name if PATH.fullmatch(known) else known


def copy_board(source: Path, target: Path) -> None:
    """Copy TensorBoard's files, under names without the host's name and process ids."""
    for number, path in enumerate(sorted(path for path in source.rglob("*tfevents*") if path.is_file())):
        dated, timed = BOARD_FOLDER.match(path.parent.name), BOARD_FILE.match(path.name)
        folder = target / (dated[0] if dated else "board")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / f"events.out.tfevents.{timed[1] if timed else 0}.{number}")

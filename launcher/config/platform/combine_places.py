"""Fields that say where a request's model and data come from, and where its result goes.

Only this module of the conversion looks at the machine: whether a folder exists, and the context of its model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gemfleet.launcher.sources.address import check_address
from gemfleet.launcher.sources.objects import parse_object_address
from gemfleet.train.errors import UserError
from gemfleet.train.model.resolve import model_context

from .draft import Draft
from .request import Request

OBJECT_STORES = ("s3", "gs")
Exists = Callable[[str], bool]
Context = Callable[[str], int | None]


def path_exists(path: str) -> bool:
    """Whether this machine has the folder."""
    return Path(path).expanduser().is_dir()


def context_of(model: str) -> int | None:
    """The context of a model folder on this machine, in tokens. None for anything else."""
    folder = Path(model).expanduser()
    try:
        return model_context(folder) if (folder / "config.json").is_file() else None
    except (UserError, OSError):
        return None  # the run's own checks say what is wrong with the folder


def combine_places(request: Request, draft: Draft, exists: Exists) -> None:
    for section, target in (("model", "train.model"), ("dataset", "train.data.train")):
        _source(request, draft, exists, section, target)
    if request.has("experiment_name"):
        draft.put("name", request.get("experiment_name"), "experiment_name")
    _delivery(request, draft)


def _source(request: Request, draft: Draft, exists: Exists, section: str, target: str) -> None:
    where = "model_repository" if section == "model" else "dataset_repository"
    repository_key, path_key = f"{section}.{where}", f"{section}.{section}_path"
    branch_key = f"{section}.{section}_branch"
    kind = request.get(f"{section}.type")
    repository, path, branch = (request.values.get(key) for key in (repository_key, path_key, branch_key))
    if path is not None and (kind == "local" or exists(path)):
        draft.put(target, path, path_key)
    elif kind == "local":
        draft.problems.append(f"{path_key}: missing; {section}.type is `local`, so give the folder that holds it")
    elif repository is None:
        draft.problems.append(f"{repository_key}: missing; give where the {section} comes from")
    elif kind == "git":
        source = f"git+{repository}" + (f"#{branch}" if branch else "")
        draft.put(target, source, repository_key, *([branch_key] if branch else []))
        _check_address(draft, repository_key, repository, branch)
    else:
        draft.put(target, repository, repository_key)
        if kind in OBJECT_STORES:
            _check_store(draft, repository_key, repository, kind)
        if branch not in (None, "main"):
            draft.problems.append(f"{branch_key}: found '{branch}'; only a git repository has branches here, remove it")


def _delivery(request: Request, draft: Draft) -> None:
    kind, repository = request.get("save_model.type"), request.values.get("save_model.model_repository")
    if kind == "local":
        return
    if repository is None:
        draft.problems.append(f"save_model.model_repository: missing; save_model.type is `{kind}`, so give its address")
        return
    draft.put("output.deliver.type", kind, "save_model.type")
    draft.put("output.deliver.repository", repository, "save_model.model_repository")
    if kind == "git":
        _check_address(draft, "save_model.model_repository", repository, None)
    elif kind in OBJECT_STORES:
        _check_store(draft, "save_model.model_repository", repository, kind)
    branch = request.values.get("experiment_name")
    if kind == "git" and branch is None:
        draft.problems.append("experiment_name: missing; the result is pushed to the branch of that name")
    elif kind != "hub" and branch is not None:
        draft.put("output.deliver.branch", branch, "experiment_name")


def _check_address(draft: Draft, key: str, repository: str, branch: str | None) -> None:
    try:
        check_address(repository, branch)
    except UserError as error:
        draft.problems.append(f"{key}: {error}")


def _check_store(draft: Draft, key: str, address: str, kind: str) -> None:
    try:
        scheme = parse_object_address(address).scheme
    except UserError as error:
        draft.problems.append(f"{key}: {error}")
    else:
        if scheme != kind:
            draft.problems.append(f"{key}: found '{address}', but its type is `{kind}`; give one of {kind}://")


def check_context(draft: Draft, context: Context) -> None:
    """Refuse rows that are longer than the model's context, if this machine has the model."""
    model, length = draft.fields.get("train.model"), draft.fields.get("train.data.max_length")
    longest = context(model) if isinstance(model, str) else None
    if longest is not None and isinstance(length, int) and length > longest:
        names = " and ".join(draft.because["train.data.max_length"])
        draft.problems.append(f"{names}: found {length}, but {model} was made for {longest} tokens; lower it")

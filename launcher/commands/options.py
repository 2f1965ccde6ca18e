"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML or JSON configuration file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace one value of the file; may be given many times."),
]
Name = Annotated[str | None, typer.Option("--name", help="Begins the run's id, in place of the file's `name`.")]


def complete_run(incomplete: str) -> list[str]:
    """The ids of this head's runs that begin with `incomplete`, for the shell. None where there is no registry."""
    from gemfleet.cluster.registry.run_registry import RunRegistry
    from gemfleet.train.config.home import gemfleet_home

    path = gemfleet_home() / "gemfleet.db"
    ids = [run.id for run in RunRegistry(path).list_runs()] if path.is_file() else []
    return [name for name in ("latest", *ids) if name.startswith(incomplete)]


def run_argument(text: str) -> Any:
    """The argument RUN with its help."""
    return typer.Argument(metavar="RUN", help=text, show_default=False, autocompletion=complete_run)


Run = Annotated[str, run_argument("A run's id, the beginning of one, or `latest`.")]
RunOrSweep = Annotated[
    str, run_argument("The id of a run or of a sweep, the beginning of one, or `latest`: the newest run.")
]
Resume = Annotated[
    str | None,
    typer.Option(
        "--resume",
        metavar="RUN",
        help="Continue this run with this configuration; `latest`: the newest run of its name.",
        autocompletion=complete_run,
    ),
]
AcceptChanges = Annotated[
    bool,
    typer.Option(
        "--accept-changes",
        help="Continue although data, base or alpha differ from the checkpoint's; history and card say so.",
    ),
]
RunId = Annotated[
    str | None,
    typer.Option("--id", metavar="ID", help="The run's whole id; a second run of the same id is refused."),
]
Tags = Annotated[
    list[str] | None, typer.Option("--tag", metavar="KEY=VALUE", help="Tag the run; may be given many times.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs in place of a table for people.")]


Trace = Annotated[
    Path | None,
    typer.Option(
        "--trace",
        metavar="FILE",
        help="Write what each process did, and when, to this file; Chrome and Perfetto show it.",
        show_default=False,
    ),
]


def with_name(overrides: list[str] | None, name: str | None) -> list[str]:
    """The overrides, with `--name` as one of them."""
    return [*(overrides or []), *([f"name={name}"] if name else [])]


def checked_id(run_id: str | None) -> str | None:
    """The id. Raises UserError if it could not be a folder's name."""
    import re

    from gemfleet.launcher.config.schema import NAME_PATTERN
    from gemfleet.train.errors import UserError

    if run_id is not None and not re.match(NAME_PATTERN, run_id):
        raise UserError(f"--id {run_id!r} is no id for a run; use letters, digits, `.`, `_` and `-`, at most 64")
    return run_id


def parsed_tags(given: list[str] | None, removing: bool = False) -> dict[str, str | None]:
    """Values by key of `KEY=VALUE`. removing: whether `KEY=` may stand for a tag to take away, which is None

    Raises UserError for what is no tag.
    """
    from gemfleet.cluster.registry.run_records import MOST_TAGS, tag_problem
    from gemfleet.train.errors import UserError

    tags: dict[str, str | None] = {}
    for one in given or []:
        key, sign, value = one.partition("=")
        removed = removing and bool(sign) and not value
        problem = tag_problem(key, "-" if removed else value) if sign else f"{one!r} is no tag; give KEY=VALUE"
        if problem:
            raise UserError(problem)
        tags[key] = None if removed else value
    if len(tags) > MOST_TAGS and not removing:  # once the run is made, it would be too late
        raise UserError(f"{len(tags)} tags are given; give at most {MOST_TAGS}")
    return tags


def refuse_tags_of_old(tags: list[str] | None, resume: str | None) -> None:
    """Raise UserError for `--tag` beside `--resume`: the run has its tags already."""
    from gemfleet.train.errors import UserError

    if tags and resume:
        raise UserError(f"--tag is for a new run; tag the one that goes on with `gemfleet tag {resume} {tags[0]}`")

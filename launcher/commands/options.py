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

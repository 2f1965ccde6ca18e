"""`gemfleet sweep`"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .options import Config, Json, Name, Overrides, with_name
from .sweep_here import sweep_here

if TYPE_CHECKING:
    from gemfleet.launcher.config.schema import LaunchConfig
    from gemfleet.launcher.runs.sweep_view import SweepView
    from gemfleet.launcher.runs.sweeps import Sweep
    from gemfleet.launcher.sweep.space import Space
    from gemfleet.launcher.sweep.table import SweepDisplay

NAME_CHARACTERS = 38  # the id of a trial, `<name>-<date>-<time>-<4 random>-<number>`, has at most 64
ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,58}$"


Grid = Annotated[
    list[str] | None,
    typer.Option("--grid", metavar="FIELD=V1,V2", help="Try each of these values; many times: all combinations."),
]
Uniform = Annotated[
    list[str] | None,
    typer.Option("--uniform", metavar="FIELD=LOW:HIGH", help="Draw from this range; needs --random."),
]
LogUniform = Annotated[
    list[str] | None,
    typer.Option("--loguniform", metavar="FIELD=LOW:HIGH", help="The same, each decade equally likely."),
]
Random = Annotated[
    int | None, typer.Option("--random", metavar="N", min=1, help="Draw so many trials, not all combinations.")
]
Sampler = Annotated[
    Literal["random", "tpe"], typer.Option(help="How --random draws; tpe: near the best trials so far.")
]
Parallel = Annotated[
    int | None, typer.Option("--parallel", min=1, help="Trials at once. [default: as many as fit, at most 8]")
]
Prune = Annotated[
    bool, typer.Option("--prune", help="End trials that are worse than the better half at the same evaluation.")
]
Metric = Annotated[str, typer.Option(help="Evaluation loss to compare; eval_NAME_loss: of one set.")]
SweepId = Annotated[str | None, typer.Option("--id", metavar="ID", help="The sweep's whole id.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check and print the trials; start nothing.")]


def sweep(
    config: Config,
    grid: Grid = None,
    uniform: Uniform = None,
    loguniform: LogUniform = None,
    random: Random = None,
    sampler: Sampler = "random",
    seed: Annotated[int, typer.Option(min=0, help="Seed of what --random draws.")] = 0,
    parallel: Parallel = None,
    prune: Prune = False,
    metric: Metric = "eval_loss",
    overrides: Overrides = None,
    name: Name = None,
    sweep_id: SweepId = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Try values of some fields, each in a run of its own, and show which evaluation loss is the lowest.

    All runs stand in the cluster's one queue. Their ids are `<sweep>-001`, `<sweep>-002` …; `gemfleet show`, `stop` and
    `resume` take the sweep's id too. A sweep that was stopped or killed goes on with `gemfleet resume SWEEP`.

    Examples:

      gemfleet sweep run.yaml --grid train.lora.r=8,16,32 --grid train.optim.learning_rate=1e-4,2e-4

      gemfleet sweep run.yaml --random 20 --loguniform train.optim.learning_rate=1e-5:1e-3 --sampler tpe --prune

    Exit codes: 0 all trials succeeded or were pruned, or the sweep was stopped; 1 a trial failed or was interrupted; 2
    something to put right first; 130 ended by Ctrl-C.
    """
    from gemfleet.launcher.config.load import load_config
    from gemfleet.launcher.runs.sweeps import Sweep

    shared = with_name(overrides, name)
    loaded = load_config(config, shared)
    space = _space(grid, uniform, loguniform, random)
    asked = Sweep(
        id=_checked_id(sweep_id, loaded.name or config.stem),
        name=loaded.name or config.stem,
        created_at=time.time(),
        launched_from=str(Path.cwd()),
        metric=metric,
        grid=space.grid,
        ranges=space.ranges,
        wanted=random or space.count(),
        sampler="grid" if random is None else sampler,
        seed=seed,
        parallel=parallel,
        prune=prune,
    )
    _check_or_start(asked, config, shared, loaded, dry_run, as_json)


def _check_or_start(
    asked: Sweep, config: Path, shared: list[str], loaded: LaunchConfig, dry_run: bool, as_json: bool
) -> None:
    """shared: the overrides of all trials, with which `loaded` was read from the file at `config`."""

    def launch(display: SweepDisplay) -> SweepView:
        from gemfleet.launcher.sweep.launch import launch_sweep

        return launch_sweep(asked, loaded, config, shared, display)

    if not dry_run:
        sweep_here(launch, asked.id, as_json)
        return
    from gemfleet.launcher.sweep.check import check_sweep

    check_sweep(config, shared, loaded, asked)
    _print_trials(asked, as_json)


def _space(
    grid: list[str] | None, uniform: list[str] | None, loguniform: list[str] | None, random: int | None
) -> Space:
    """The values to try. Raises UserError for options that cannot be read, or that need others."""
    from gemfleet.launcher.sweep.space import parse_space
    from gemfleet.train.errors import UserError

    space = parse_space(grid or (), uniform or (), loguniform or ())
    if space.ranges and random is None:
        raise UserError("a range has no last value; say how many trials to draw, as in --random 20")
    return space


def _checked_id(wanted: str | None, name: str) -> str:
    """The id of a new sweep. Raises UserError for one whose trials could not be named after it."""
    from gemfleet.launcher.runs.names import new_run_id
    from gemfleet.train.errors import UserError

    if wanted is None:
        return new_run_id(name[:NAME_CHARACTERS])
    if wanted == "latest" or not re.match(ID_PATTERN, wanted):
        raise UserError(
            f"--id {wanted!r} is no id for a sweep; use letters, digits, `.`, `_` and `-`, at most 59, and not `latest`"
        )
    return wanted


def _print_trials(asked: Sweep, as_json: bool) -> None:
    """Print the trials of a grid, or what would be drawn."""
    import json

    from gemfleet.launcher.sweep.space import Space
    from gemfleet.launcher.sweep.table import short_names, shown_value

    from .tables import print_table, print_text

    known = list(Space(asked.grid, {}).combinations()) if asked.sampler == "grid" else []
    if as_json:
        facts = asked.model_dump(include={"metric", "wanted", "sampler", "grid", "ranges", "prune"})
        typer.echo(json.dumps({**facts, "trials": known}, indent=2, ensure_ascii=False))
        return
    if known:
        names = short_names(asked.fields)
        rows = [[str(n), *map(shown_value, settings.values())] for n, settings in enumerate(known, 1)]
        print_table(["trial", *names.values()], rows)
    print_text(f"{asked.wanted} trials would be started, and compared by {asked.metric}")

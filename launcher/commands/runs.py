"""`gemfleet runs`"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Json

if TYPE_CHECKING:
    from gemfleet.cluster.registry.run_registry import RunRegistry

WIDE = 100  # narrower terminals show shorter dates, so that ids, which people copy, stay whole
MONTH_TO_MINUTE = slice(5, 16)  # of a date and time


def runs(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Show at most this many, newest first.")] = 20,
    tags: Annotated[
        list[str] | None, typer.Option("--tag", metavar="KEY[=VALUE]", help="Only runs with this tag; many times.")
    ] = None,
    archived: Annotated[bool, typer.Option("--archived", help="Only archived runs, which are left out else.")] = False,
    as_json: Json = False,
) -> None:
    """List the runs of this head node, newest first. The loss is the newest step's, or the mean of an ended run.

    Below them, where their sweeps stand, if some are trials of a sweep.

    Examples:

      gemfleet runs

      gemfleet runs --tag team=search --tag purpose

      gemfleet runs --json | jq '.[0].state'
    """
    import json

    from gemfleet.launcher.runs.sweeps import sweep_of
    from gemfleet.train.config.home import gemfleet_home
    from rich.text import Text

    from .local_runs import moment, open_registry, spoken_tags
    from .tables import open_console, print_table

    registry = open_registry()
    wanted = {key: value if sign else None for key, sign, value in (one.partition("=") for one in tags or [])}
    found = registry.list_runs(limit=limit, archived=archived, tags=wanted)
    steps = {run.id: registry.latest_metrics(run.id, "step") for run in found}
    figures = {run.id: registry.end_figures(run.id) for run in found}
    sweeps = {run.id: sweep_of(gemfleet_home(), run.id) for run in found}
    if as_json:
        facts = [
            {**run.to_dict(), "newest_step": steps[run.id], "figures": figures[run.id], "sweep": sweeps[run.id]}
            for run in found
        ]
        typer.echo(json.dumps(facts, indent=2))
        return
    rows, narrow = list[list[str | Text]](), open_console().width < WIDE
    for run in found:
        step = steps[run.id] or {}
        loss = figures[run.id].get("loss", step.get("loss"))
        progress = f"{step['step']}/{step['total_steps']}" if step else ""
        shown = "" if loss is None else f"{loss:.3f}"
        created = moment(run.created_at)
        cells = [run.id, str(run.state), progress, shown, created[MONTH_TO_MINUTE] if narrow else created]
        rows.append([*cells, Text(spoken_tags(run.tags))])
    columns = ["run", "state", "step", "loss", "created", "tags"]
    tagged = any(run.tags for run in found)
    print_table(columns[: 5 + tagged], [row[: 5 + tagged] for row in rows], ("run", "tags"))
    _print_sweeps(dict.fromkeys(filter(None, sweeps.values())), registry)


def _print_sweeps(ids: Iterable[str], registry: RunRegistry) -> None:
    """A line for each sweep."""
    from gemfleet.launcher.runs.sweep_view import summary, view_sweep
    from gemfleet.launcher.runs.sweeps import read_sweep
    from gemfleet.train.config.home import gemfleet_home

    from .tables import print_text

    for sweep in filter(None, (read_sweep(gemfleet_home(), one) for one in ids)):
        print_text(summary(view_sweep(gemfleet_home(), registry, sweep)))

"""`gemfleet runs`"""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Json


def runs(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Show at most this many, newest first.")] = 20,
    as_json: Json = False,
) -> None:
    """List the runs of this head node, newest first.

    Examples:

      gemfleet runs

      gemfleet runs --json | jq '.[0].state'
    """
    import json

    from .home import moment, open_registry
    from .tables import print_table

    registry = open_registry()
    found = registry.list_runs(limit=limit)
    steps = {run.id: registry.latest_metrics(run.id, "step") for run in found}
    if as_json:
        typer.echo(json.dumps([{**run.to_dict(), "newest_step": steps[run.id]} for run in found], indent=2))
        return
    rows = []
    for run in found:
        step = steps[run.id]
        progress = f"{step['step']}/{step['total_steps']}" if step else ""
        rows.append([run.id, str(run.state), progress, f"{step['loss']:.3f}" if step else "", moment(run.created_at)])
    print_table(["run", "state", "step", "loss", "created"], rows)

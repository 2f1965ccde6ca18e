"""`gemfleet tag`"""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Json, Run, parsed_tags


def tag(
    run: Run,
    tags: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Tags to set. `KEY=` takes one away.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Set tags of a run, take them away, or show them. `gemfleet runs --tag` and the dashboard find runs by them.

    Examples:

      gemfleet tag latest team=search purpose=baseline

      gemfleet tag latest purpose=
    """
    import json

    from .local_runs import open_registry, spoken_tags

    changes = parsed_tags(tags, removing=True)
    registry = open_registry()
    run_id = registry.find_run(run).id
    if changes:
        registry.annotate(run_id, changes)
    now = dict(registry.get_run(run_id).tags)
    if as_json:
        typer.echo(json.dumps({"run": run_id, "tags": now}))
    else:
        typer.echo(f"{run_id}: {spoken_tags(now) or 'no tags'}")

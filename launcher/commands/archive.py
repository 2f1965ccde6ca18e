"""`gemfleet archive`"""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Json, Run


def archive(
    run: Run,
    undo: Annotated[bool, typer.Option("--undo", help="Show the run in lists again.")] = False,
    as_json: Json = False,
) -> None:
    """Leave a run that has ended out of lists, unless they are asked for archived runs. Its files stay.

    Resuming the run takes that back. To remove files, see `gemfleet prune`.

    Examples:

      gemfleet archive demo-2026

      gemfleet archive demo-2026 --undo

      gemfleet runs --archived
    """
    import json

    from .local_runs import open_registry

    registry = open_registry()
    run_id = registry.find_run(run).id
    registry.annotate(run_id, archived=not undo)
    if as_json:
        typer.echo(json.dumps({"run": run_id, "archived": not undo}))
    else:
        typer.echo(f"{run_id} is {'in lists again' if undo else 'archived; `gemfleet runs --archived` lists it'}")

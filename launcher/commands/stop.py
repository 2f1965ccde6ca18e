"""`gemfleet stop`"""

from __future__ import annotations

import time
from typing import Annotated

import typer

from .options import Json, Run

POLL_SECONDS = 0.5


def stop(
    run: Run,
    wait: Annotated[bool, typer.Option("--wait", help="Return only once the run has ended.")] = False,
    as_json: Json = False,
) -> None:
    """Ask a run to save a checkpoint after its current step, and end.

    Examples:

      gemfleet stop latest --wait
    """
    import json

    from .local_runs import open_registry

    registry = open_registry()
    found = registry.find_run(run)
    registry.request_stop(found.id)
    while wait and not registry.get_run(found.id).state.is_terminal:
        time.sleep(POLL_SECONDS)
        registry.mark_interrupted()
    state = str(registry.get_run(found.id).state)
    if as_json:
        typer.echo(json.dumps({"run": found.id, "state": state, "stop_requested": True}))
    else:
        typer.echo(f"{found.id} is {state}" if wait else f"{found.id} was asked to save a checkpoint and end")

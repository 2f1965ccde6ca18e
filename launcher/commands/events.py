"""`gemfleet events`"""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Json, Run
from .run_source import Address, open_source


def events(
    run: Run,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Show what happened to a run: its states, checkpoints, restarts and failures.

    Examples:

      gemfleet events latest --follow

      gemfleet events demo-20260102-030405-1a2b --address http://HEAD:8266
    """
    from .local_runs import moment

    try:
        for event in open_source(run, address).events(follow):
            typer.echo(event.model_dump_json() if as_json else f"{moment(event.created_at)}  {event.message}")
    except KeyboardInterrupt:
        raise typer.Exit(130) from None

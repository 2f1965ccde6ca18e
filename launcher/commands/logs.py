"""`gemfleet logs`"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated

import typer
from gemfleet.launcher.runs.log_files import LogReader
from gemfleet.launcher.runs.log_order import by_time

from .options import Json, Run

POLL_SECONDS = 0.5


def logs(
    run: Run,
    rank: Annotated[
        int | None, typer.Option(min=0, help="Lines of this rank only. [default: driver and all ranks]")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
    tail: Annotated[int, typer.Option(min=0, help="Begin with this many of the last lines of each file.")] = 200,
    as_json: Json = False,
) -> None:
    """Show the log lines of a run in the order of their times. All ranks' lines arrive on this head while it runs.

    Examples:

      gemfleet logs latest --follow

      gemfleet logs demo-2026 --rank 1 --tail 20
    """
    import json

    from .local_runs import open_registry, run_folder

    registry = open_registry()
    found = registry.find_run(run)
    reader = LogReader(run_folder(found.id) / "logs", rank)

    def write(source: str, line: str) -> None:
        typer.echo(json.dumps({"source": source, "line": line}) if as_json else f"{source:8} {line}")

    for source, line in by_time(reader.tail(tail)):
        write(source, line)
    if follow:
        try:
            follow_until(lambda: registry.get_run(found.id).state.is_terminal, reader, write)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


def follow_until(ended: Callable[[], bool], reader: LogReader, write: Callable[[str, str], None]) -> None:
    """Write new lines as they come. Return after the run has ended and all lines are written."""
    while True:
        last = ended()
        for source, line in by_time(reader.new_lines()):
            write(source, line)
        if last:
            return
        time.sleep(POLL_SECONDS)

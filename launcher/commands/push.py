"""`gemfleet push`"""

from __future__ import annotations

import sys

import typer

from .options import Run


def push(run: Run) -> None:
    """Deliver the result of a run to where its configuration says.

    Use it after a delivery failed, or for a run that was stopped, whose result stays here. Delivering the same result
    twice changes nothing.

    Examples:

      gemfleet push latest

    Exit codes: 0 delivered, 1 not delivered, 2 something to put right first.
    """
    from gemfleet.cluster.registry.event_kinds import EventKind
    from gemfleet.launcher.config.load import load_config
    from gemfleet.launcher.display import open_display
    from gemfleet.launcher.result.delivery.deliver import deliver_folder
    from gemfleet.launcher.result.delivery.errors import DeliveryError
    from gemfleet.train.errors import UserError

    from .local_runs import open_registry, run_folder

    registry = open_registry()
    found = registry.find_run(run)
    folder = run_folder(found.id)
    if not (folder / "output").is_dir():
        raise UserError(f"the run {found.id} has published nothing yet; there is no {folder / 'output'}")
    deliver = load_config(folder / "config.resolved.yaml").output.deliver
    if deliver is None:
        raise UserError(f"the run {found.id} has no output.deliver, so its result stays in {folder / 'output'}")
    display = open_display()
    display.phase("delivering")
    try:
        sentence = deliver_folder(folder / "output", deliver, found.id, display.advance)
    except DeliveryError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    finally:
        display.close()
    registry.add_event(found.id, EventKind.DELIVERED, sentence)
    typer.echo(sentence)

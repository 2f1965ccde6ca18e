"""`gemfleet track`"""

from __future__ import annotations

import typer

from .options import Overrides, Run


def track(run: Run, overrides: Overrides = None) -> None:
    """Send a run that has ended to its trackers again: what they lack, the result, and how it ended.

    Use it after a tracker did not answer, or for a run that had none.

    Examples:

      gemfleet track latest

      gemfleet track latest --set 'trackers=[{type: mlflow, uri: "http://mlflow:5000"}]'

    Exit codes: 0 all trackers have all, 1 one lacks something, 2 something to put right first.
    """
    from gemfleet.launcher.config.load import load_config
    from gemfleet.launcher.runs.folder import RESOLVED_FILE
    from gemfleet.launcher.tracking.check import check_trackers
    from gemfleet.launcher.tracking.processes import tracked
    from gemfleet.launcher.tracking.state import TrackerState
    from gemfleet.launcher.tracking.tracker import place_of
    from gemfleet.train.errors import UserError

    from .local_runs import open_registry, refuse_running, run_folder

    registry = open_registry()
    found = registry.find_run(run)
    refuse_running(found)
    trackers = load_config(run_folder(found.id) / RESOLVED_FILE, overrides or ()).trackers
    if not trackers:
        raise UserError(f"the run {found.id} has no trackers; name one: --set 'trackers=[{{type: mlflow, uri: …}}]'")
    check_trackers(trackers)
    with tracked(registry, found.id, trackers, typer.echo):
        pass
    states = [TrackerState(t.type, place_of(t)).read(run_folder(found.id)) for t in trackers]
    for state in states:
        if state.done:
            typer.echo(f"{state.name} has all of {found.id}{f': {state.link}' if state.link else ''}")
    raise typer.Exit(0 if all(state.done for state in states) else 1)

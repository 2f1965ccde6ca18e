"""`gemfleet stop`"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Json, RunOrSweep

if TYPE_CHECKING:
    from gemfleet.cluster.registry.run_registry import RunRegistry
    from gemfleet.launcher.runs.sweeps import Sweep

POLL_SECONDS = 0.5


def stop(
    run: RunOrSweep,
    wait: Annotated[bool, typer.Option("--wait", help="Return only once the run has ended.")] = False,
    as_json: Json = False,
) -> None:
    """Ask a run, or all of a sweep, to save a checkpoint after its current step, and end.

    Examples:

      gemfleet stop latest --wait
    """
    import json

    from gemfleet.launcher.runs.sweeps import find_sweep
    from gemfleet.train.config.home import gemfleet_home

    from .local_runs import open_registry

    registry = open_registry()
    if sweep := find_sweep(gemfleet_home(), run):
        _stop_sweep(sweep, registry, wait, as_json)
        return
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


def _stop_sweep(sweep: Sweep, registry: RunRegistry, wait: bool, as_json: bool) -> None:
    """Let the sweep begin no further trial, and stop those that run, also where the sweep's own process is gone."""
    import json

    from gemfleet.cluster.errors import RunConflict
    from gemfleet.launcher.runs.sweep_view import RUNNING, view_sweep
    from gemfleet.launcher.runs.sweeps import ask_to_stop, read_sweep
    from gemfleet.train.config.home import gemfleet_home

    home = gemfleet_home()
    ask_to_stop(home, sweep.id)
    view = view_sweep(home, registry, sweep)
    for trial in view.trials:
        if trial.is_live:
            with suppress(RunConflict):  # it ended just now
                registry.request_stop(trial.run_id)
    while wait and (view.state == RUNNING or any(trial.is_live for trial in view.trials)):
        time.sleep(POLL_SECONDS)
        registry.mark_interrupted()
        view = view_sweep(home, registry, read_sweep(home, sweep.id) or sweep)
    if as_json:
        typer.echo(json.dumps({"sweep": sweep.id, "state": view.state, "stop_requested": True}))
    else:
        said = f"is {view.state}" if wait else "was asked to stop; its runs save a checkpoint and end"
        typer.echo(f"sweep {sweep.id} {said}; `gemfleet resume {sweep.id}` goes on")

"""`gemfleet resume`"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from .launch_here import launch_here
from .options import AcceptChanges, Json, Overrides, RunOrSweep, Trace
from .sweep_here import resume_sweep_here


def resume(
    run: RunOrSweep,
    overrides: Overrides = None,
    accept_changes: AcceptChanges = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the checkpoint to continue from; start nothing.")
    ] = False,
    trace: Trace = None,
    reopened: Annotated[bool, typer.Option("--reopened", hidden=True)] = False,
    as_json: Json = False,
) -> None:
    """Continue a run that has ended, from its newest verified checkpoint and with the configuration in its folder.

    The number of ranks may change (`--set cluster.workers=1`), but data, base and adapters must be those that made the
    checkpoint. A damaged checkpoint is passed over for the one before it. A run without checkpoints starts at step 0,
    under the same id. A run that has succeeded has nothing left to do, unless `--set` asks for more.

    Of a sweep, trials that succeeded or were pruned stay as they are; all others go on, then the rest begins.

    Examples:

      gemfleet resume latest

      gemfleet resume demo-2026 --set cluster.workers=4
    """
    from gemfleet.launcher.config.load import load_config
    from gemfleet.launcher.run.beginning import Resumed, Submitted
    from gemfleet.launcher.run.check_inputs import check_everything
    from gemfleet.launcher.run.resume import check_resume, nothing_left
    from gemfleet.launcher.run.starting_adapter import with_kept_adapter
    from gemfleet.launcher.runs.folder import RESOLVED_FILE, launch_folder
    from gemfleet.launcher.runs.sweeps import find_sweep
    from gemfleet.train.config.home import gemfleet_home
    from gemfleet.train.errors import UserError

    from .local_runs import open_registry, refuse_running, run_folder

    registry = open_registry()
    if sweep := find_sweep(gemfleet_home(), run):
        resume_sweep_here(sweep, registry, bool(overrides) or accept_changes, dry_run, as_json)
        return
    found = registry.find_run(run)
    folder = run_folder(found.id)
    if not (folder / RESOLVED_FILE).is_file():
        raise UserError(f"{folder} has no {RESOLVED_FILE}; start the run anew with `gemfleet train CONFIG`")
    os.chdir(launch_folder(folder))
    config = with_kept_adapter(load_config(folder / RESOLVED_FILE, overrides or []), folder)
    if dry_run:
        sentence = None if reopened else nothing_left(registry, found.id, config)
        if sentence is None:
            check_everything(config)
            check_resume(config.train, folder, accept_changes)
        _print_start(found.id, sentence, as_json)
    else:
        if not reopened:
            refuse_running(found)
        # The API opens the row again before it starts this process.
        beginning = (Submitted if reopened else Resumed)(found.id, accept_changes)
        launch_here(config, folder / RESOLVED_FILE, as_json, beginning, trace=trace)


def _print_start(run_id: str, finished: str | None, as_json: bool) -> None:
    """Print the checkpoint from which the run would continue. finished: why it would not"""
    import json

    from gemfleet.launcher.runs.checkpoints import shelf_of

    from .local_runs import run_folder

    with shelf_of(run_folder(run_id)) as shelf:
        newest, damaged = shelf.newest_verified()
    if as_json:
        facts = {"run": run_id, "step": newest.step if newest else 0, "damaged": damaged, "finished": finished}
        typer.echo(json.dumps(facts))
        return
    for sentence in damaged:
        typer.echo(f"damaged, passed over: {sentence}")
    if finished:
        typer.echo(finished)
        return
    typer.echo(f"{run_id} would go on from {f'checkpoint-{newest.step}' if newest else 'step 0'}")

"""Carries a sweep out in this process and prints how it ended. `sweep` and `resume` share it, and `show` its words."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from gemfleet.cluster.registry.run_registry import RunRegistry
    from gemfleet.launcher.runs.sweep_view import SweepView
    from gemfleet.launcher.runs.sweeps import Sweep
    from gemfleet.launcher.sweep.table import SweepDisplay


def sweep_here(launch: Callable[[SweepDisplay], SweepView], sweep_id: str, as_json: bool) -> None:
    """Carry the sweep out. Raises typer.Exit with an exit code that `gemfleet sweep --help` explains."""
    from gemfleet.launcher.run.signals import EXIT_CODE, SIGNALS
    from gemfleet.launcher.submit.shadowing import refuse_shadowing
    from gemfleet.launcher.sweep.table import SweepDisplay
    from gemfleet.launcher.unread import output_may_go_unread
    from gemfleet.train.errors import UserError
    from gemfleet.train.quiet import hide_known_lines
    from rich.console import Console

    from .launch_here import RAY_LINE

    refuse_shadowing(Path.cwd())
    hide_known_lines((RAY_LINE,))
    with SIGNALS.installed(), output_may_go_unread():
        display = SweepDisplay(Console(file=sys.stderr))
        try:
            # Ray writes its raylets' messages to standard output of every driver; the logs of trials have them.
            with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
                view = launch(display)
        except KeyboardInterrupt:
            SIGNALS.ending()
            print(f"interrupted; `gemfleet resume {sweep_id}` goes on", file=sys.stderr)
            raise typer.Exit(EXIT_CODE) from None
        except OSError as error:  # for example a full disk
            where = f" ({error.filename})" if error.filename else ""
            raise UserError(
                f"the sweep {sweep_id} cannot go on: {error.strerror or error}{where}; put that right, then "
                f"`gemfleet resume {sweep_id}`"
            ) from error
        finally:
            display.close()
        print_sweep(view, as_json)
        if SIGNALS.asked is not None:
            raise typer.Exit(EXIT_CODE)
    if any(trial.state in ("failed", "interrupted") for trial in view.trials):
        raise typer.Exit(1)


def resume_sweep_here(sweep: Sweep, registry: RunRegistry, changed: bool, dry_run: bool, as_json: bool) -> None:
    """Go on with a sweep. changed: whether options ask for another configuration, which is refused."""
    from gemfleet.launcher.runs.sweep_view import DONE, view_sweep
    from gemfleet.train.config.home import gemfleet_home
    from gemfleet.train.errors import UserError

    if changed:
        raise UserError(f"{sweep.id} is a sweep, whose trials keep their configuration; leave out --set and the like")
    view = view_sweep(gemfleet_home(), registry, sweep)
    done = sum(trial.state in DONE for trial in view.trials)
    if dry_run or done == sweep.wanted:
        print_sweep(view, as_json)
        if not as_json:
            typer.echo(f"{sweep.wanted - done} trials are left" if done < sweep.wanted else "nothing is left to do")
        return

    def launch(display: SweepDisplay) -> SweepView:
        from gemfleet.launcher.sweep.launch import resume_sweep

        return resume_sweep(sweep.id, display)

    sweep_here(launch, sweep.id, as_json)


def print_sweep(view: SweepView, as_json: bool) -> None:
    """Print the table of a sweep and its best trial."""
    import json

    from gemfleet.launcher.runs.sweep_view import summary
    from gemfleet.launcher.sweep.table import named, table_of

    from .local_runs import run_folder
    from .tables import open_console, print_text

    if as_json:
        typer.echo(json.dumps(sweep_facts(view), indent=2, ensure_ascii=False))
        return
    open_console().print(table_of(view))
    print_text(summary(view))
    for trial in view.trials:
        if trial.state in ("failed", "interrupted") and trial.reason:
            print_text(f"trial {trial.number} {trial.state}: {trial.reason}")
    if best := view.best:
        print_text(f"best: {named(view, best)} with {view.sweep.metric} {best.value:.4f} at step {best.best_step}")
        output = run_folder(best.run_id) / "output"
        gone = f" ({best.reason})" if best.reason else ""
        typer.echo(f"adapter: {output}" if output.is_dir() else f"run: {best.run_id}{gone}")
    if view.state in ("stopped", "interrupted"):
        typer.echo(f"to go on: gemfleet resume {view.sweep.id}")


def sweep_facts(view: SweepView) -> dict[str, Any]:
    """A sweep for programs. A loss that JSON cannot say is null."""
    best = view.best
    return {
        "sweep": view.sweep.id,
        "state": view.state,
        "metric": view.sweep.metric,
        "wanted": view.sweep.wanted,
        "best": best.run_id if best else None,
        "trials": [
            {
                "run": trial.run_id,
                "settings": trial.settings,
                "state": trial.state,
                "reason": trial.reason,
                "step": trial.step,
                "total_steps": trial.total_steps,
                "value": trial.value if trial.value is None or math.isfinite(trial.value) else None,
                "best_step": trial.best_step,
            }
            for trial in view.trials
        ],
    }

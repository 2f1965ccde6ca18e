"""Launches a run in this process, shows its progress and prints how it ended. `train` and `resume` share it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from gemfleet.launcher.config.schema import LaunchConfig
    from gemfleet.launcher.run.beginning import Beginning
    from gemfleet.launcher.run.outcome import Outcome

# A line that Ray writes in each run and that tells a person nothing: its logger, and how it begins.
RAY_LINE = ("ray._private.authentication.authentication_token_setup", "Token authentication is enabled")


def launch_here(
    config: LaunchConfig,
    path: Path,
    as_json: bool,
    beginning: Beginning,
    batch_cache: bool = True,
    trace: Path | None = None,
) -> None:
    """Carry out the run. Raises typer.Exit with an exit code that `gemfleet train --help` explains.

    path: of the configuration; beginning, batch_cache, trace: see `launch`
    """
    from gemfleet.launcher.run.signals import EXIT_CODE, SIGNALS
    from gemfleet.launcher.submit.shadowing import refuse_shadowing
    from gemfleet.launcher.unread import output_may_go_unread

    if trace is not None:
        from gemfleet.launcher.runs.trace import refuse_unwritable

        refuse_unwritable(trace)
    refuse_shadowing(Path.cwd())  # before anything is imported that this folder could shadow
    with SIGNALS.installed(), output_may_go_unread():
        try:
            outcome = _launch_shown(config, path, beginning, batch_cache, trace)
            _print_outcome(outcome, as_json)
            if outcome.output is not None and not as_json:
                _print_demo(outcome, config)
            if outcome.interrupted:
                raise typer.Exit(EXIT_CODE)
        except KeyboardInterrupt:
            SIGNALS.ending()
            print("interrupted; `gemfleet resume latest` goes on from the newest checkpoint", file=sys.stderr)
            raise typer.Exit(EXIT_CODE) from None


def _launch_shown(
    config: LaunchConfig, path: Path, beginning: Beginning, batch_cache: bool, trace: Path | None
) -> Outcome:
    """Launch with a display. It closes before anything else is printed."""
    from gemfleet.launcher.display import open_display
    from gemfleet.launcher.result.delivery.errors import DeliveryError
    from gemfleet.launcher.run.early import joined_early
    from gemfleet.launcher.run.outcome import TrainingFailedError
    from gemfleet.train.quiet import hide_known_lines

    hide_known_lines((RAY_LINE,))
    display = open_display()
    try:
        with joined_early(config, beginning.run_id) as begun:
            from gemfleet.launcher.run.launch import launch

            return launch(config, path, display, beginning, batch_cache, trace, begun)
    except TrainingFailedError as error:
        failure = f"error: training failed: {error.message}\nthe logs of all ranks are in {error.logs}"
    except DeliveryError as error:
        kept = "the adapter lies whole in the run's folder; `gemfleet push latest` delivers it again"
        failure = f"error: {error}\n{kept}"
    finally:
        display.close()
    print(failure, file=sys.stderr)
    raise typer.Exit(1)


def _print_demo(outcome: Outcome, config: LaunchConfig) -> None:
    """Of the demonstration, show what its model answers before and after the training."""
    from gemfleet.cluster.errors import ClusterError
    from gemfleet.launcher.ask.demo import before_and_after, is_demo
    from gemfleet.train.errors import UserError
    from rich.text import Text

    from .local_runs import run_folder
    from .tables import print_table

    if not is_demo(config) or outcome.state != "succeeded" or not (outcome.result or {}).get("total_steps"):
        return
    print("asking it before and after training …", file=sys.stderr)
    try:
        rows = [[Text(cell) for cell in row] for row in before_and_after(run_folder(outcome.run_id))]
    except (UserError, ClusterError) as error:  # the run itself has succeeded
        print(f"it cannot be asked: {error}", file=sys.stderr)
        return
    print_table(["question", "before", "after"], rows, ("question", "before", "after"))


def _print_outcome(outcome: Outcome, as_json: bool) -> None:
    import json

    from .tables import print_text

    result = outcome.result or {}
    if as_json:
        output = None if outcome.output is None else str(outcome.output)
        facts = {"run": outcome.run_id, "state": str(outcome.state), "output": output, "reason": outcome.reason}
        typer.echo(json.dumps({**facts, **result}))
        return
    if outcome.output is None:
        print_text(outcome.reason)
        return
    evaluated = ""
    if result.get("eval_loss") is not None:
        before = f"{result['eval_loss_before']:.4f} -> " if result["total_steps"] else ""
        evaluated = f"; evaluation loss {before}{result['eval_loss']:.4f}"
    print_text(f"{outcome.run_id} {outcome.state} after {result['steps']} of {result['total_steps']} steps{evaluated}")
    figures = result.get("figures") or {}
    if "tokens_per_second" in figures:
        speed = f"{figures['tokens_per_second']:,.0f} tokens/s at the median"
        print_text(f"training loss {figures['loss']:.4f} on average, {speed}")
    typer.echo(f"{'adapter' if result['total_steps'] else 'result'}: {outcome.output}")
    if result["total_steps"]:
        typer.echo(f'try it: gemfleet ask {outcome.run_id} "your question"')
    typer.echo(f"curves: gemfleet tensorboard {outcome.run_id}")
    typer.echo("dashboard: gemfleet serve")

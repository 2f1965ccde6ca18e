"""`gemfleet train`"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import AcceptChanges, Config, Json, Name, Overrides, Resume, RunId, checked_id, with_name

if TYPE_CHECKING:
    from gemfleet.launcher.config.schema import LaunchConfig
    from gemfleet.launcher.run.beginning import Beginning
    from gemfleet.launcher.run.session import Outcome

# Ray's logger, and how the line begins that it writes on a terminal in each run.
RAY_LINE = ("ray._private.authentication.authentication_token_setup", "Token authentication is enabled")


def train(
    config: Config,
    overrides: Overrides = None,
    name: Name = None,
    resume: Resume = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved configuration and plan; start nothing.")
    ] = False,
    accept_changes: AcceptChanges = False,
    new_id: RunId = None,
    run_id: Annotated[str | None, typer.Option("--run-id", hidden=True)] = None,
    batch_cache: Annotated[
        bool, typer.Option("--batch-cache/--no-batch-cache", help="Use a micro-batch that `auto` found before.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Fine-tune a Gemma 3 with LoRA on a Ray cluster, and bring the adapter home to this head node.

    Uses the cluster this machine belongs to, or starts one here for the run. Run it on the head node, or let
    `gemfleet submit` or `ray job submit` do that. Ctrl-C saves a checkpoint and ends the run.

    Examples:

      gemfleet train finetune.yaml --dry-run

      gemfleet train finetune.yaml --set train.lora.r=8 --set cluster.workers=2

      gemfleet train finetune.yaml --resume latest

      ray job submit --address http://HEAD:8265 --working-dir . -- gemfleet train finetune.yaml

    Exit codes: 0 trained, 1 training failed, 2 something to put right first, 130 ended by Ctrl-C, SIGTERM or
    SIGHUP: as stopped, with a checkpoint, once ranks train, and as interrupted before.
    """
    from gemfleet.launcher.run.signals import SIGNALS

    with SIGNALS.installed():
        from gemfleet.launcher.config.load import load_with_notes

        loaded, notes = load_with_notes(config, with_name(overrides, name))
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if dry_run:
        _check(loaded, resume, config, accept_changes)
        _print_plan(loaded, as_json)
    else:
        resumed = None if resume is None else run_to_resume(resume, loaded.name or config.stem)
        beginning = _beginning(resumed, accept_changes, submitted=run_id, new=new_id)
        run_to_its_end(loaded, config, as_json, beginning, batch_cache)


def _beginning(resumed: str | None, accept_changes: bool, submitted: str | None, new: str | None) -> Beginning:
    from gemfleet.launcher.run.beginning import New, Resumed, Submitted

    if resumed is not None:
        return Resumed(resumed, accept_changes)
    return New(checked_id(new)) if submitted is None else Submitted(submitted)


def run_to_resume(wanted: str, name: str) -> str:
    """The id of the run meant by `--resume`; `latest` is the newest of this configuration's name."""
    from gemfleet.cluster.errors import UnknownRun

    from .local_runs import open_registry, refuse_running

    registry = open_registry()
    if wanted != "latest":
        found = registry.find_run(wanted)
    else:
        named = [run for run in registry.list_runs(limit=1_000_000) if run.name == name]
        if not named:
            raise UnknownRun(f"--resume latest: there is no run named {name!r} yet; leave --resume out to start one")
        found = named[0]
    refuse_running(found)
    return found.id


def _check(config: LaunchConfig, resume: str | None, path: Path, accept_changes: bool) -> None:
    """What the run itself would find to be wrong before it starts."""
    from gemfleet.launcher.run.check_inputs import check_everything
    from gemfleet.launcher.run.resume import check_resume

    from .local_runs import run_folder

    check_everything(config)
    if resume is not None:
        check_resume(config.train, run_folder(run_to_resume(resume, config.name or path.stem)), accept_changes)


def _print_plan(config: LaunchConfig, as_json: bool) -> None:
    import json

    from gemfleet.launcher.config.load import dump_config
    from gemfleet.launcher.plan.this_machine import describe_here
    from gemfleet.train.config.home import gemfleet_home

    from .tables import print_facts

    plan = describe_here(config, gemfleet_home() / "runs")
    if as_json:
        resolved = config.model_dump(mode="json", by_alias=True)
        typer.echo(json.dumps({"config": resolved, "plan": plan}, indent=2, ensure_ascii=False))
        return
    typer.echo(dump_config(config))
    print_facts(plan)


def run_to_its_end(
    config: LaunchConfig,
    path: Path,
    as_json: bool,
    beginning: Beginning,
    batch_cache: bool = True,
) -> None:
    """Launch, show what goes on, and print the outcome. For the last two see `launch`."""
    from gemfleet.launcher.run.signals import EXIT_CODE, SIGNALS
    from gemfleet.launcher.submit.shadowing import refuse_shadowing
    from gemfleet.launcher.unread import output_may_go_unread

    refuse_shadowing(Path.cwd())  # before anything is imported that could come from there
    with SIGNALS.installed(), output_may_go_unread():
        try:
            _run_to_its_end(config, path, as_json, beginning, batch_cache)
        except KeyboardInterrupt:
            SIGNALS.ending()
            print("interrupted; `gemfleet resume latest` goes on from the newest checkpoint", file=sys.stderr)
            raise typer.Exit(EXIT_CODE) from None


def _run_to_its_end(config: LaunchConfig, path: Path, as_json: bool, beginning: Beginning, batch_cache: bool) -> None:
    from gemfleet.launcher.display import open_display
    from gemfleet.launcher.result.delivery.errors import DeliveryError
    from gemfleet.launcher.run.launch import launch
    from gemfleet.launcher.run.session import TrainingFailedError
    from gemfleet.train.quiet import KNOWN_LINES, hide_known_lines

    hide_known_lines((*KNOWN_LINES, RAY_LINE))
    display = open_display()
    try:
        outcome = launch(config, path, display, beginning, batch_cache)
    except TrainingFailedError as error:
        display.close()
        print(f"error: training failed: {error.message}\nthe logs of all ranks are in {error.logs}", file=sys.stderr)
        raise typer.Exit(1) from None
    except DeliveryError as error:
        display.close()
        print(
            f"error: {error}\nthe adapter lies whole in the run's folder; `gemfleet push latest` delivers it again",
            file=sys.stderr,
        )
        raise typer.Exit(1) from None
    finally:
        display.close()
    _print_outcome(outcome, as_json)
    if outcome.interrupted:
        raise typer.Exit(130)


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
    typer.echo(f"curves: gemfleet tensorboard {outcome.run_id}")
    typer.echo("dashboard: gemfleet serve")

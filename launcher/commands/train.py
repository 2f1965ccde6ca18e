"""`gemfleet train`"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from .launch_here import launch_here
from .options import (
    AcceptChanges,
    Config,
    Json,
    Name,
    Overrides,
    Resume,
    RunId,
    Tags,
    Trace,
    checked_id,
    parsed_tags,
    refuse_tags_of_old,
    with_name,
)

if TYPE_CHECKING:
    from gemfleet.launcher.config.schema import LaunchConfig
    from gemfleet.launcher.run.beginning import Beginning, New


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
    tags: Tags = None,
    run_id: Annotated[str | None, typer.Option("--run-id", hidden=True)] = None,
    batch_cache: Annotated[
        bool, typer.Option("--batch-cache/--no-batch-cache", help="Use a micro-batch that `auto` found before.")
    ] = True,
    trace: Trace = None,
    as_json: Json = False,
) -> None:
    """Fine-tune a Gemma 3 with LoRA on a Ray cluster, and bring the adapter home to this head node.

    Uses the cluster that this machine belongs to, or starts one here for the run. Run it on the head node, or let
    `gemfleet submit` or `ray job submit` do that. Ctrl-C saves a checkpoint and ends the run.

    Examples:

      gemfleet train finetune.yaml --dry-run

      gemfleet train finetune.yaml --set train.lora.r=8 --set cluster.workers=2

      gemfleet train finetune.yaml --resume latest

      gemfleet train finetune.yaml --tag team=search --tag purpose=baseline

      ray job submit --address http://HEAD:8265 --working-dir . -- gemfleet train finetune.yaml

    Exit codes: 0 trained, 1 training failed, 2 something to put right first, 130 ended by Ctrl-C, SIGTERM or SIGHUP. A
    run that such a signal ends while ranks train is stopped, with a checkpoint; before that it is interrupted.
    """
    from gemfleet.launcher.run.beginning import New
    from gemfleet.launcher.run.signals import SIGNALS

    refuse_tags_of_old(tags, resume)
    tagged = parsed_tags(tags)
    with SIGNALS.installed():
        from gemfleet.launcher.config.load import load_with_notes

        loaded, notes = load_with_notes(config, with_name(overrides, name))
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    resumed = None if resume is None else run_to_resume(resume, loaded.name or config.stem)
    if dry_run:
        _check(loaded, resumed, accept_changes)
        _print_plan(loaded, as_json)
    else:
        beginning = _beginning(resumed, run_id, New(checked_id(new_id), tagged), accept_changes)
        launch_here(loaded, config, as_json, beginning, batch_cache, trace)


def _beginning(resumed: str | None, submitted: str | None, new: New, accept_changes: bool) -> Beginning:
    """How the run begins. resumed: the run of `--resume`; submitted: `--run-id`, from the API; new: otherwise"""
    from gemfleet.launcher.run.beginning import Resumed, Submitted

    if resumed is not None:
        return Resumed(resumed, accept_changes)
    return new if submitted is None else Submitted(submitted)


def run_to_resume(wanted: str, name: str) -> str:
    """The id of the run that `--resume` means. `latest` is the newest run of this configuration's name.

    Raises UnknownRun if there is none, RunConflict if it has not ended.
    """
    from gemfleet.cluster.errors import UnknownRun
    from gemfleet.cluster.registry.run_queries import NO_LIMIT

    from .local_runs import open_registry, refuse_running

    registry = open_registry()
    if wanted != "latest":
        found = registry.find_run(wanted)
    else:
        named = [run for run in registry.list_runs(limit=NO_LIMIT) if run.name == name]
        if not named:
            raise UnknownRun(f"--resume latest: there is no run named {name!r} yet; leave --resume out to start one")
        found = named[0]
    refuse_running(found)
    return found.id


def _check(config: LaunchConfig, resumed: str | None, accept_changes: bool) -> None:
    """Raise the UserError that the run itself would raise before it starts."""
    from gemfleet.launcher.run.check_inputs import check_everything
    from gemfleet.launcher.run.resume import check_resume

    from .local_runs import run_folder

    check_everything(config)
    if resumed is not None:
        check_resume(config.train, run_folder(resumed), accept_changes)


def _print_plan(config: LaunchConfig, as_json: bool) -> None:
    import json

    from gemfleet.cluster.redaction import HIDDEN
    from gemfleet.launcher.config.load import dump_config
    from gemfleet.launcher.data_view.gather import first_rows
    from gemfleet.launcher.data_view.sentences import in_short
    from gemfleet.launcher.plan.this_machine import describe_here
    from gemfleet.train.config.home import gemfleet_home

    from .data_print import MOST_CHARACTERS, legend, print_example
    from .tables import open_console, print_facts, print_text

    plan, view = describe_here(config, gemfleet_home() / "runs"), first_rows(config.train)
    plan["rows"] = view if isinstance(view, str) else in_short(view)
    config = config.model_copy(update={"notify": tuple(n.model_copy(update={"url": HIDDEN}) for n in config.notify)})
    if as_json:
        resolved = config.model_dump(mode="json", by_alias=True)
        data = None if isinstance(view, str) else view.model_dump()
        typer.echo(json.dumps({"config": resolved, "plan": plan, "data": data}, indent=2, ensure_ascii=False))
        return
    typer.echo(dump_config(config))
    print_facts(plan)
    if not isinstance(view, str):
        print_text(f"\n{legend(open_console())}")
        for example in view.examples[:1]:
            print_example(example, MOST_CHARACTERS)

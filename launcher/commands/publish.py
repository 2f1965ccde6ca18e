"""`gemfleet publish`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Json, Run

if TYPE_CHECKING:
    from gemfleet.cluster.registry.run_registry import RunRegistry
    from gemfleet.launcher.result.chosen import Picked


def publish(
    run: Run,
    step: Annotated[
        str | None,
        typer.Option("--step", metavar="N|best|last", help="Which checkpoint. [default: as output.checkpoint says]"),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Folder or hub id of the base, where the run's own is gone.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make the result of a run that has ended again, from any of its whole checkpoints and without a cluster.

    Use it to publish another checkpoint, or for a run that failed after it had trained. The new result replaces the
    old one when it is whole. It is not compared with the training loop, for which a run uses its cluster. `gemfleet
    push` delivers it.

    Examples:

      gemfleet publish latest --step 40

      gemfleet publish demo-2026 --model ./gemma-3-270m
    """
    import json
    from contextlib import closing
    from dataclasses import asdict

    from gemfleet.cluster.driver import DriverLock
    from gemfleet.cluster.registry.event_kinds import EventKind
    from gemfleet.launcher.config.load import load_config
    from gemfleet.launcher.result.again import publication_again
    from gemfleet.launcher.result.chosen import asked_checkpoint, pick
    from gemfleet.launcher.result.publish import has_answers
    from gemfleet.launcher.result.publish import publish as write
    from gemfleet.launcher.runs.checkpoints import shelf_of
    from gemfleet.launcher.runs.folder import RESOLVED_FILE

    from .local_runs import open_registry, refuse_running, run_folder

    registry = open_registry()
    found = registry.find_run(run)
    refuse_running(found)
    folder = run_folder(found.id)
    asked = load_config(folder / RESOLVED_FILE).output.checkpoint if step is None else asked_checkpoint(step)
    with closing(DriverLock(folder, wait_seconds=0.0)), shelf_of(folder) as shelf:
        picked, damaged = pick(shelf, asked)
        publication = publication_again(folder, picked, facts_of_training(registry, found.id, picked), model)
        output = write(publication)
    chosen = picked.chosen
    registry.add_event(found.id, EventKind.PUBLISHED, f"published {chosen.reason}", asdict(chosen))
    if as_json:
        typer.echo(json.dumps({"run": found.id, "output": str(output), "damaged": damaged, **asdict(chosen)}))
        return
    for sentence in damaged:
        typer.echo(f"damaged, passed over: {sentence}")
    if (folder / "predictions").is_dir() and not has_answers(publication):
        typer.echo("answers and metrics of the run are of another checkpoint and are left out")
    typer.echo(f"published {chosen.reason}\nadapter: {output}")


def facts_of_training(registry: RunRegistry, run_id: str, picked: Picked) -> dict[str, Any]:
    """What the card says of how training went, from the registry and the newest checkpoint. See `late_facts`."""
    import json

    from gemfleet.cluster.registry.event_kinds import EventKind
    from gemfleet.launcher.result.again import late_facts
    from gemfleet.launcher.runs.repair import ended_early

    history = json.loads(picked.history)
    told = registry.last_event(run_id, EventKind.RESULT)
    whole = history["global_step"] >= history["max_steps"] or ended_early(history)
    state = "succeeded" if whole else str(registry.get_run(run_id).state)
    return late_facts(registry.metrics(run_id, kind="step"), told["data"].get("device") if told else None, state)

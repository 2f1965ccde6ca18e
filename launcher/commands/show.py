"""`gemfleet show`"""

from __future__ import annotations

from typing import Any

import typer

from .options import Json, RunOrSweep


def show(run: RunOrSweep, as_json: Json = False) -> None:
    """Show one run: its state, newest figures, ranks, checkpoints and events. Of a sweep: its trials, and the best.

    Examples:

      gemfleet show latest

      gemfleet show demo-2026 --json
    """
    import json
    from dataclasses import asdict

    from gemfleet.launcher.config.load import shown_config
    from gemfleet.launcher.runs.registry import early_end_of, published_of
    from gemfleet.launcher.runs.sweep_view import view_sweep
    from gemfleet.launcher.runs.sweeps import find_sweep
    from gemfleet.launcher.tracking.state import tracker_states
    from gemfleet.train.config.home import gemfleet_home

    from .local_runs import open_registry, run_folder
    from .sweep_here import print_sweep

    registry = open_registry()
    if sweep := find_sweep(gemfleet_home(), run):
        print_sweep(view_sweep(gemfleet_home(), registry, sweep), as_json)
        return
    found = registry.find_run(run)
    facts: dict[str, Any] = {
        **found.to_dict(),
        "config": shown_config(found.config),
        "folder": str(run_folder(found.id)),
        "figures": registry.end_figures(found.id),
        "newest_step": registry.latest_metrics(found.id, "step"),
        "newest_eval": registry.latest_metrics(found.id, "eval"),
        "ranks": registry.ranks(found.id),
        "checkpoints": registry.checkpoints(found.id),
        "events": registry.events(found.id),
        "stopped_early": early_end_of(registry, found),
        "published": published_of(registry, found.id),
        "trackers": [asdict(state) for state in tracker_states(run_folder(found.id))],
    }
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        _print(facts)


def _print(facts: dict[str, Any]) -> None:
    from gemfleet.train.step.record import spoken_loss

    from .local_runs import moment, spoken_tags
    from .tables import print_facts

    step, evaluation = facts["newest_step"], facts["newest_eval"]
    lines = {
        "run": facts["id"],
        "state": facts["state"] + (f": {facts['reason']}" if facts["reason"] else ""),
        "tags": spoken_tags(facts["tags"]) + (" (archived)" if facts["archived"] else ""),
        "created": moment(facts["created_at"]),
        "ended": moment(facts["ended_at"]),
        "step": f"{step['step']}/{step['total_steps']}, {_figures(step, facts['figures'])}" if step else "",
        "evaluation": f"loss {spoken_loss(evaluation)} at step {evaluation['step']}" if evaluation else "",
        "ranks": ", ".join(f"{rank['rank']} on {rank['address']}" for rank in facts["ranks"]),
        "checkpoints": ", ".join(f"checkpoint-{c['step']}" for c in facts["checkpoints"]),
        "published": facts["published"] or "",
        "early end": facts["stopped_early"] or "",
        "trackers": ", ".join(f"{state['type']} {state['link'] or state['place']}" for state in facts["trackers"]),
        "folder": facts["folder"],
    }
    print_facts({name: value for name, value in lines.items() if value})
    typer.echo("")
    for event in facts["events"]:
        typer.echo(f"{moment(event['time'])}  {event['message']}")


def _figures(step: dict[str, Any], figures: dict[str, Any]) -> str:
    """Loss and speed: of the newest step, or of the whole run if it has ended."""
    known = {**step, **figures}
    speed = f", {known['tokens_per_second']:,.0f} tokens/s" if known.get("tokens_per_second") else ""
    return f"loss {known['loss']:.4f}{speed}" + (" (mean and median of all steps)" if figures else "")

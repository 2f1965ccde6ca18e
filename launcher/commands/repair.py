"""`gemfleet repair`"""

from __future__ import annotations

import typer

from .options import Json


def repair(as_json: Json = False) -> None:
    """Rebuild a damaged or lost registry from the runs' folders and the manifests of their checkpoints.

    Runs, their states, configurations, checkpoints and logs come back. Metrics and events come back if the damaged file
    can still be read; that file is kept. A registry that is whole gets the runs that it lacks.

    Examples:

      gemfleet repair
    """
    import json

    from gemfleet.launcher.runs.repair import repair as rebuild
    from gemfleet.train.config.home import gemfleet_home

    done = rebuild(gemfleet_home())
    if as_json:
        facts = {"aside": done.aside and str(done.aside), "salvaged": done.salvaged, "rebuilt": list(done.rebuilt)}
        typer.echo(json.dumps(facts, indent=2))
        return
    if done.aside is not None:
        typer.echo(f"the registry was damaged and is now {done.aside}; {done.salvaged} runs could be read from it")
    for run_id in done.rebuilt:
        typer.echo(f"rebuilt from its folder: {run_id}")
    if done.aside is None and not done.rebuilt:
        typer.echo("the registry is whole, and knows every run that has a folder")

"""`gemfleet prune`"""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Json


def prune(
    keep: Annotated[int, typer.Option(min=0, help="Leave this many of the newest runs alone.")] = 10,
    older_than_days: Annotated[
        float, typer.Option("--older-than", metavar="DAYS", min=0, help="Only runs that ended longer ago.")
    ] = 0.0,
    checkpoints_only: Annotated[
        bool,
        typer.Option("--checkpoints-only", help="Remove all but the newest verified checkpoint; keep the run itself."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove. Without it, only say what would go.")] = False,
    as_json: Json = False,
) -> None:
    """Remove runs that ended, with all their files, from this head node. Says what would go unless --yes is given.

    A run that has not ended is never touched.

    Examples:

      gemfleet prune --keep 20

      gemfleet prune --older-than 30 --checkpoints-only --yes
    """
    import json
    import time

    from ..pruning import Removal, carry_out, choose
    from .home import moment, open_registry, run_folder, size
    from .tables import print_table

    registry = open_registry()
    ended_before = time.time() - older_than_days * 86_400
    chosen = choose(registry.list_runs(limit=1_000_000), keep, ended_before)
    removals = [Removal.of(run.id, run_folder(run.id), checkpoints_only) for run in chosen]
    removals = [removal for removal in removals if removal.steps != ()]
    if yes:
        for removal in removals:
            carry_out(removal, registry)
    if as_json:
        typer.echo(json.dumps([{"run": r.run_id, "bytes": r.size, "removed": yes} for r in removals], indent=2))
        return
    ended = {run.id: run.ended_at for run in chosen}
    print_table(["run", "ended", "size"], [[r.run_id, moment(ended[r.run_id]), size(r.size)] for r in removals])
    total = size(sum(removal.size for removal in removals))
    typer.echo(f"{total} removed" if yes else f"{total} would be removed; add --yes")

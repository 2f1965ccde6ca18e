"""`gemfleet prune`"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Json

if TYPE_CHECKING:
    from gemfleet.cluster.registry.run_registry import Run, RunRegistry
    from gemfleet.launcher.runs.prune import Removal


def prune(
    keep: Annotated[int, typer.Option(min=0, help="Leave this many of the newest runs alone.")] = 10,
    older_than_days: Annotated[
        float, typer.Option("--older-than", metavar="DAYS", min=0, help="Only runs that ended longer ago.")
    ] = 0.0,
    checkpoints_only: Annotated[
        bool,
        typer.Option("--checkpoints-only", help="Remove all but the newest verified checkpoint; keep the run itself."),
    ] = False,
    pictures: Annotated[
        bool,
        typer.Option(
            "--pictures", help="Also the features of pictures (train.vision.cache: head) that no run used since."
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove. Without it, only say what would go.")] = False,
    as_json: Json = False,
) -> None:
    """Remove runs that have ended, with all their files, from this head node. Without --yes, only say what would go.

    Never touches a run that has not ended. Exit code 1 when a run could not be removed; all others are removed.

    Examples:

      gemfleet prune --keep 20

      gemfleet prune --older-than 30 --checkpoints-only --yes

      gemfleet prune --older-than 7 --pictures --yes
    """
    import json
    import time

    from gemfleet.cluster.registry.run_queries import NO_LIMIT
    from gemfleet.launcher.runs.prune import choose, clear_rests
    from gemfleet.train.config.home import gemfleet_home

    from .local_runs import moment, open_registry, size
    from .tables import print_table

    registry = open_registry()
    ended_before = time.time() - older_than_days * 86_400
    chosen = choose(registry.list_runs(limit=NO_LIMIT), keep, ended_before)
    removals, odd = _each(chosen, registry, checkpoints_only, yes)
    if yes:
        clear_rests(gemfleet_home(), registry)
    features = _features(older_than_days, yes) if pictures else None
    if as_json:
        found: list[dict[str, Any]] = [{"run": r.run_id, "bytes": r.size, "removed": yes} for r in removals]
        found += [{"run": run_id, "bytes": 0, "removed": False, "problem": reason} for run_id, reason in odd.items()]
        found += [] if features is None else [{"features": features[0], "bytes": features[1], "removed": yes}]
        typer.echo(json.dumps(found, indent=2))
    else:
        ended = {run.id: run.ended_at for run in chosen}
        print_table(["run", "ended", "size"], [[r.run_id, moment(ended[r.run_id]), size(r.size)] for r in removals])
        if features is not None:
            typer.echo(f"features of {features[0]:,} pictures: {size(features[1])}")
        total = size(sum(removal.size for removal in removals) + (features[1] if features else 0))
        typer.echo(f"{total} removed" if yes else f"{total} would be removed; add --yes")
    for run_id, reason in odd.items():
        print(f"left alone: {run_id}: {reason}", file=sys.stderr)
    if odd:
        raise typer.Exit(1)


def _features(days: float, remove: bool) -> tuple[int, int]:
    """How many pictures' features no run has used for so long, and their bytes."""
    from gemfleet.train.model.vision.kept import feature_folder, unused_since

    folder = feature_folder()
    found = unused_since(folder.entries(), days)
    if remove:
        folder.remove(found)
    return len(found), sum(one.bytes for one in found)


def _each(
    runs: Sequence[Run], registry: RunRegistry, checkpoints_only: bool, remove: bool
) -> tuple[list[Removal], dict[str, str]]:
    """The removal of each run, and the reasons why some runs stay. One that fails keeps no other from going."""
    from gemfleet.cluster.errors import DiskFull, RegistryDamaged
    from gemfleet.launcher.runs.prune import Removal, carry_out

    from .local_runs import run_folder

    removals, odd, unforgotten = [], {}, []
    for run in runs:
        try:
            removal = Removal.of(run.id, run_folder(run.id), checkpoints_only)
            if removal.steps == ():
                continue
            if remove:
                carry_out(removal, registry)
            removals.append(removal)
        except DiskFull:
            unforgotten.append(removal)  # its files are gone; its row goes after other runs' files have made room
        except RegistryDamaged:
            raise
        except Exception as error:
            odd[run.id] = in_a_line(error)
    for removal in unforgotten:
        try:
            carry_out(removal, registry)
            removals.append(removal)
        except Exception as error:
            odd[removal.run_id] = in_a_line(error)
    return removals, odd


def in_a_line(error: Exception) -> str:
    return " ".join(str(error).split()) or repr(error)

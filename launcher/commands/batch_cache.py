"""`gemfleet batch-cache`"""

from __future__ import annotations

import typer

from .options import Json

batch_cache = typer.Typer(
    name="batch-cache",
    help="The micro-batches that `train.batch.micro: auto` found on this head.",
    no_args_is_help=True,
)


@batch_cache.command("list")
def list_found(as_json: Json = False) -> None:
    """List the found micro-batches, the oldest first.

    Examples:

      gemfleet batch-cache list
    """
    import json
    from dataclasses import asdict

    from gemfleet.train.batch_finder.cache import BatchCache, batch_cache_file

    from .local_runs import moment, size
    from .tables import print_table

    entries = BatchCache(batch_cache_file()).entries()
    if as_json:
        typer.echo(json.dumps([{"key": key, **asdict(found)} for key, found in entries.items()], indent=2))
        return
    rows = [
        [key, found.variant, str(found.rows), f"{found.speed:,.0f}", size(found.peak_bytes), moment(found.found_at)]
        for key, found in entries.items()
    ]
    print_table(["key", "variant", "rows", "tokens/s", "peak memory", "found"], rows)


@batch_cache.command("clear")
def clear(as_json: Json = False) -> None:
    """Forget all found micro-batches, so that the next run with `auto` searches again.

    Examples:

      gemfleet batch-cache clear
    """
    import json

    from gemfleet.train.batch_finder.cache import BatchCache, batch_cache_file

    count = BatchCache(batch_cache_file()).clear()
    typer.echo(json.dumps({"removed": count}) if as_json else f"{count} found micro-batches were forgotten")

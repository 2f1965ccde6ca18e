"""`gemfleet data-cache`"""

from __future__ import annotations

import typer

from .options import Json

data_cache = typer.Typer(
    name="data-cache",
    help="The tokenised data that this head keeps for later runs; `train.data.cache` limits its size.",
    no_args_is_help=True,
)


@data_cache.command("list")
def list_kept(as_json: Json = False) -> None:
    """List the tokenised data sets, the least recently used first.

    Examples:

      gemfleet data-cache list
    """
    import json
    from dataclasses import asdict

    from gemfleet.train.data.prepared.store import PreparedStore, prepared_folder

    from .local_runs import moment, size
    from .tables import print_table

    kept = PreparedStore(prepared_folder(), 0).kept()
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in kept], indent=2))
        return
    rows = [
        [one.key[:12], one.source, f"{one.examples:,}", f"{one.tokens:,}", size(one.bytes), moment(one.used_at)]
        for one in kept
    ]
    print_table(["key", "data", "examples", "tokens", "size", "last used"], rows)


@data_cache.command("clear")
def clear(as_json: Json = False) -> None:
    """Remove all tokenised data sets. The next run tokenises its data again.

    Examples:

      gemfleet data-cache clear
    """
    import json

    from gemfleet.train.data.prepared.store import PreparedStore, prepared_folder

    count = PreparedStore(prepared_folder(), 0).clear()
    typer.echo(json.dumps({"removed": count}) if as_json else f"{count} tokenised data sets were removed")

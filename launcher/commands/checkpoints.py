"""`gemfleet checkpoints`"""

from __future__ import annotations

import typer

from .options import Json, Run


def checkpoints(run: Run, as_json: Json = False) -> None:
    """List the verified checkpoints of a run that are on this head node.

    Each is a folder that peft loads as an adapter: `PeftModel.from_pretrained(model, FOLDER)`.

    Examples:

      gemfleet checkpoints latest
    """
    import json

    from .home import moment, open_registry, size
    from .tables import print_table

    registry = open_registry()
    found = registry.checkpoints(registry.find_run(run).id)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    rows = [[str(c["step"]), size(c["bytes"]), moment(c["created_at"]), c["path"]] for c in found]
    print_table(["step", "size", "committed", "folder"], rows)

"""`gemfleet checkpoints`"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Json, Run


class Action(StrEnum):
    """What to do with the checkpoints of a run."""

    LIST = "list"
    VERIFY = "verify"
    PULL = "pull"
    EXPORT = "export"


class Form(StrEnum):
    """What to export, by its name in `output.formats`."""

    ADAPTER = "adapter"
    MERGED = "merged"
    GGUF = "gguf"


def checkpoints(
    run: Run,
    action: Annotated[Action, typer.Argument(help="`pull` and `export` take STEP and DEST.")] = Action.LIST,
    step: Annotated[str | None, typer.Argument(metavar="STEP", help="A step, or `latest`.", show_default=False)] = None,
    destination: Annotated[
        Path | None, typer.Argument(metavar="DEST", help="A new folder.", show_default=False)
    ] = None,
    form: Annotated[
        Form,
        typer.Option(
            "--format", help="With `export`: the adapter, the base model with it added, or that for llama.cpp."
        ),
    ] = Form.ADAPTER,
    as_json: Json = False,
) -> None:
    """List, verify, copy or export the checkpoints of a run.

    Each is a folder that peft loads as an adapter: `PeftModel.from_pretrained(model, FOLDER)`. `verify` reads every
    file and compares it with the manifest. Its exit code is 1 when a file is damaged.

    Examples:

      gemfleet checkpoints latest

      gemfleet checkpoints latest verify

      gemfleet checkpoints demo-2026 pull 450 ./checkpoint-450

      gemfleet checkpoints demo-2026 export latest ./merged --format merged
    """
    from .local_runs import open_registry, run_folder

    registry = open_registry()
    run_id = registry.find_run(run).id
    if action is Action.LIST:
        _list(registry.checkpoints(run_id), as_json)
    elif action is Action.VERIFY:
        _verify(run_folder(run_id), as_json)
    else:
        _copy(action, run_folder(run_id), step, destination, form, as_json)


def _list(found: list[dict[str, Any]], as_json: bool) -> None:
    import json

    from .local_runs import moment, size
    from .tables import print_table

    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    rows = [[str(c["step"]), size(c["bytes"]), moment(c["created_at"]), c["path"]] for c in found]
    print_table(["step", "size", "committed", "folder"], rows, ("folder",))


def _verify(folder: Path, as_json: bool) -> None:
    import json

    from gemfleet.launcher.runs.checkpoints import shelf_of

    from .tables import print_table

    with shelf_of(folder) as shelf:
        verdicts = shelf.verify_all()
    if as_json:
        typer.echo(json.dumps([{"checkpoint": name, "problem": problem} for name, problem in verdicts], indent=2))
    else:
        rows = [[name, problem or "whole"] for name, problem in verdicts]
        print_table(["checkpoint", "verdict"], rows, ("verdict",))
    if any(problem for _, problem in verdicts):
        raise typer.Exit(1)


def _copy(action: Action, folder: Path, step: str | None, destination: Path | None, form: Form, as_json: bool) -> None:
    import json

    from gemfleet.launcher.result.again import adapter_publication
    from gemfleet.launcher.result.export import EXPORTS, pull, verified_checkpoint
    from gemfleet.launcher.runs.checkpoints import shelf_of
    from gemfleet.train.errors import UserError

    if step is None or destination is None:
        raise UserError(
            f"`{action}` needs a STEP (or `latest`) and a DEST: gemfleet checkpoints RUN {action} STEP DEST"
        )
    if step != "latest" and not step.isdigit():
        raise UserError(f"STEP is {step!r}; give a number of steps, or `latest`")
    with shelf_of(folder) as shelf:
        checkpoint, manifest = verified_checkpoint(shelf, folder.name, None if step == "latest" else int(step))
        if action is Action.PULL:
            written = pull(checkpoint, manifest, destination)
        else:
            written = EXPORTS[form](adapter_publication(folder, checkpoint), destination)
    if as_json:
        typer.echo(json.dumps({"step": manifest.step, "folder": str(written.resolve())}))
    else:
        typer.echo(f"checkpoint-{manifest.step}: {written}")

"""`gemfleet init`"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

QUESTIONS = {
    "model": "Model: a folder, a Hugging Face id, or `demo`",
    "data": "Training data: a .jsonl, .json, .csv or .parquet file, a folder, a pattern, a hub id, or `demo`",
}


def init(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="The file to write.")] = Path("run.yaml"),
    model: Annotated[str | None, typer.Option("--model", "-m", help="A folder, a Hugging Face id, or `demo`.")] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="A file, a folder of files, a hub id, or `demo`.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="Peak learning rate.")] = None,
    global_batch: Annotated[
        int | None, typer.Option("--global", help="Examples in one optimizer step, over all ranks.")
    ] = None,
    max_length: Annotated[int | None, typer.Option("--max-length", help="Tokens in a packed row.")] = None,
    workers: Annotated[str, typer.Option("--workers", "-n", help="Ranks: a number, or `auto` for every GPU.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a first configuration file, with a comment to each key.

    On a terminal it asks for the model and the data that are not given. Elsewhere they are `demo`: the packaged
    Gemma 3 270M and its questions.

    Examples:

      gemfleet init

      gemfleet init finetune.yaml --model google/gemma-3-1b-it --data chats.jsonl --epochs 3
    """
    from gemfleet.launcher.config.starter_file import starter_file
    from gemfleet.train.errors import UserError

    if file.exists() and not force:
        raise UserError(f"{file} is there already; give another name, or --force to replace it")
    if file.suffix.lower() not in (".yaml", ".yml"):
        raise UserError(f"{file} would hold YAML; give a name that ends with .yaml")
    values: dict[str, Any] = {
        "name": _run_name(file),
        "train.model": _asked("model", model),
        "train.data.train": _asked("data", data),
        "train.data.max_length": max_length,
        "train.batch.global": global_batch,
        "train.optim.learning_rate": learning_rate,
        "train.epochs": epochs,
        "cluster.workers": int(workers) if workers.isdigit() else workers,
    }
    _write_checked(file, starter_file(values, file.name))
    typer.echo(f"{file} is written; see what it would do: gemfleet train {file} --dry-run")


def _asked(name: str, given: str | None) -> str:
    """The given value, else a person's answer, else `demo`."""
    if given is None and can_ask():
        return str(typer.prompt(QUESTIONS[name], default="demo"))
    return given or "demo"


def can_ask() -> bool:
    """Whether a person sits at the terminal."""
    return sys.stdin.isatty()


def _run_name(file: Path) -> str:
    """The file's name, without characters that the name of a run may not have."""
    import re

    return re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).strip("-._")[:64] or "run"


def _write_checked(file: Path, text: str) -> None:
    """Write the file if its content is accepted. Raises UserError for a flag with a wrong value."""
    import tempfile

    from gemfleet.launcher.config.load import load_config
    from gemfleet.train.errors import UserError

    if not file.parent.is_dir():
        raise UserError(f"the folder {file.parent} does not exist; make it first")
    with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=".", suffix=".yaml", encoding="utf-8") as draft:
        draft.write(text)
        draft.flush()
        try:
            load_config(Path(draft.name))
        except UserError as error:
            raise UserError(str(error).replace(draft.name, str(file))) from None
    file.write_text(text, encoding="utf-8")

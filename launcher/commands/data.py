"""`gemfleet data`"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from gemfleet.train.errors import UserError

from .options import Config, Json, Overrides

if TYPE_CHECKING:
    from gemfleet.launcher.config.schema import LaunchConfig
    from gemfleet.launcher.data_view.gather import Reading
    from gemfleet.launcher.data_view.view import DataView, Example


def data(
    config: Config,
    overrides: Overrides = None,
    row: Annotated[
        str | None,
        typer.Option("--row", metavar="N", help="Show this row alone, also if it is left out; of a set: NAME:N."),
    ] = None,
    examples: Annotated[int, typer.Option("--examples", min=0, help="Show so many rows of each set.")] = 2,
    rows: Annotated[int | None, typer.Option("--rows", min=1, help="Read only the first so many of each set.")] = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="Say how long training takes on such GPUs, one for each rank.")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page to this file.")] = None,
    as_json: Json = False,
) -> None:
    """Show what a run would train on: which rows, how many tokens, and which of them the loss scores. Starts nothing.

    Reads and tokenises the data on this machine as a run does on its cluster. Rows that cannot be used are counted by
    reason, and the first ones are named. Supervised text of the examples is green and underlined, or stands in ⟦ ⟧.

    Examples:

      gemfleet data finetune.yaml

      gemfleet data finetune.yaml --row 17

      gemfleet data finetune.yaml --set train.data.max_length=2048 --rows 10000 --html data.html

      gemfleet data finetune.yaml --gpu h100 --json | jq .epoch
    """
    from gemfleet.launcher.config.load import load_config

    loaded = _fetched(load_config(config, overrides or []))
    if row is not None:
        if html is not None:
            raise UserError("--row shows one row here, and --html writes a page of all data; leave one of them out")
        from gemfleet.launcher.data_view.gather import one_row

        with _reading(loaded.train.model, None, 0) as how:
            example = one_row(loaded.train, how, row)
        _show_row(example, as_json)
        return
    with _reading(loaded.train.model, rows, examples) as how:
        view = _view(loaded, how, gpu)
    if html is not None:
        _write_page(view, html)
    if as_json:
        typer.echo(view.model_dump_json(indent=2))
    elif html is None:
        from .data_print import print_view

        print_view(view)


def _fetched(config: LaunchConfig) -> LaunchConfig:
    """The configuration with copies in place of remote addresses, from the cache that runs use."""
    from gemfleet.launcher.sources.fetch import fetch_sources, names_remote_sources
    from gemfleet.train.config.home import gemfleet_home

    if not names_remote_sources(config.train):
        return config
    train = fetch_sources(config.train, gemfleet_home() / "cache" / "repositories")
    return config.model_copy(update={"train": train})


@contextmanager
def _reading(model: str, rows: int | None, examples: int) -> Iterator[Reading]:
    """How the data is read, with bars on a terminal while it is."""
    from gemfleet.launcher.data_view.gather import Reading
    from gemfleet.launcher.data_view.tokenizer import quick_tokenizer, tokenizer_folder
    from gemfleet.train.data.pictures.format import PictureFormat
    from gemfleet.train.model.resolve import embedding_rows
    from rich.console import Console
    from rich.progress import Progress

    folder = tokenizer_folder(model)
    tokenizer = quick_tokenizer(folder)
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        yield Reading(tokenizer, embedding_rows(folder), PictureFormat.of(folder), progress, rows, examples)


def _view(config: LaunchConfig, how: Reading, gpu: str | None) -> DataView:
    from gemfleet.launcher.config.cluster import ranks_of
    from gemfleet.launcher.data_view.gather import gather
    from gemfleet.launcher.plan.training_time import training_time

    view = gather(config.train, how, ranks_of(config.cluster.workers) or 1)
    time = training_time(config, view.epoch, gpu) if view.epoch and how.limit is None else ""
    return view.model_copy(update={"time": time})


def _write_page(view: DataView, file: Path) -> None:
    from gemfleet.launcher.data_view.page import page

    try:
        file.write_text(page(view), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--html is {file}, which cannot be written ({error.strerror or error})") from error
    typer.echo(f"page: {file}", err=True)


def _show_row(example: Example, as_json: bool) -> None:
    from .data_print import legend, print_example
    from .tables import open_console, print_text

    if as_json:
        typer.echo(example.model_dump_json(indent=2))
        return
    print_text(legend(open_console()))
    print_example(example)

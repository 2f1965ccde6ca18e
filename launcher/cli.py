"""The `gemfleet` command: a table of commands. Each has a module, and imports heavy libraries only when it runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from gemfleet.cluster.errors import ClusterError
from gemfleet.cluster.private import keep_private
from gemfleet.train.errors import EXIT_BAD_INPUT, UserError
from gemfleet.train.quiet import hide_known_lines

from .commands.archive import archive
from .commands.ask import ask
from .commands.batch_cache import batch_cache
from .commands.bench import PASSES_ON, bench
from .commands.chat import chat
from .commands.checkpoints import checkpoints
from .commands.cluster import cluster
from .commands.convert import convert
from .commands.data import data
from .commands.data_cache import data_cache
from .commands.doctor import doctor
from .commands.events import events
from .commands.init import init
from .commands.logs import logs
from .commands.plan import plan
from .commands.prune import prune
from .commands.publish import publish
from .commands.push import push
from .commands.repair import repair
from .commands.resume import resume
from .commands.runs import runs
from .commands.schema import schema
from .commands.serve import serve
from .commands.show import show
from .commands.stop import stop
from .commands.submit import submit
from .commands.sweep import sweep
from .commands.tag import tag
from .commands.tensorboard import tensorboard
from .commands.track import track
from .commands.train import train
from .commands.version import print_version, version
from .commands.watch import watch
from .plain_output import plain

COMMANDS = (
    *(init, data, train, sweep, ask, chat, plan, convert, submit, runs, show, watch, logs, events, stop, resume),
    *(tag, archive, checkpoints, prune, repair, publish, push, track, serve, tensorboard, doctor, schema, version),
)

app = typer.Typer(
    name="gemfleet",
    help="Spread Gemma 3 LoRA fine-tuning over every GPU of a Ray cluster, and bring every checkpoint home.\n\n"
    "Start with `gemfleet init`, then `gemfleet train CONFIG --dry-run` and `gemfleet train CONFIG`.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for command in COMMANDS:
    app.command()(command)
app.command(context_settings=PASSES_ON, add_help_option=False)(bench)
app.add_typer(batch_cache)
app.add_typer(data_cache)
app.add_typer(cluster)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Options of the command as a whole."""


def main() -> None:
    """The console script. An error that the user can put right is one sentence and exit code 2, without a traceback."""
    keep_private()
    hide_known_lines()  # DeepSpeed writes to stdout, where a program may read JSON
    sys.stdout, sys.stderr = plain(sys.stdout), plain(sys.stderr)
    try:
        app()
    except (UserError, ClusterError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe has gone, as in `gemfleet runs | head`
        sys.exit(0)


if __name__ == "__main__":
    main()

"""What `gemfleet ask` and `gemfleet chat` share: their options, and the model that answers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import run_argument

if TYPE_CHECKING:
    from gemfleet.launcher.ask.answerer import Answers

Asked = Annotated[
    str, run_argument("A run's id, the beginning of one, `latest`, or the folder of a published result or adapter.")
]
Step = Annotated[
    str | None,
    typer.Option("--step", metavar="N|best|last", help="A checkpoint. [default: the published one, else the last]"),
]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="BASE", help="The base: a folder or hub id. [default: the one it was trained on]"),
]
Greedy = Annotated[
    bool, typer.Option("--greedy", help="The likeliest token each time. [default: as generation_config.json says]")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Makes sampled answers repeatable.")]
MostTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Tokens of an answer at most.")]
Cluster = Annotated[bool, typer.Option("--cluster", help="On a free GPU of the cluster, else on a free CPU.")]
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="HOST:PORT", help="The cluster. [default: RAY_ADDRESS, else this machine's]"),
]


@contextmanager
def opened(
    run: str, step: str | None, model: str | None, cluster: bool, address: str | None, sees: bool = False
) -> Iterator[tuple[str, Answers]]:
    """What RUN means, in words, and its model: in this process on the CPU, or on the cluster while the block runs.

    sees: questions come with pictures
    """
    from gemfleet.train.device.cpu import hide_gpus
    from gemfleet.train.quiet import hide_known_lines
    from rich.console import Console

    hide_known_lines()
    folder = _folder_of(run)
    with ExitStack() as stack:
        with Console(stderr=True).status("loading the model"):
            hide_gpus()  # a GPU of the head may be a run's
            from gemfleet.launcher.ask.answerer import Answerer
            from gemfleet.launcher.ask.subject import open_subject

            with open_subject(folder, step, model) as subject:
                if cluster or address:
                    from gemfleet.launcher.ask.on_cluster import answers_on_cluster

                    answers: Answers = stack.enter_context(answers_on_cluster(subject, address, sees))
                else:
                    answers = Answerer(subject, sees)
        yield subject.name, answers


def _folder_of(run: str) -> Path:
    """The folder of an adapter or of a run. Raises UnknownRun if RUN is neither."""
    from .local_runs import open_registry, run_folder

    if os.sep in run or (Path(run) / "adapter_config.json").is_file():
        return Path(run).expanduser()
    return run_folder(open_registry().find_run(run).id)

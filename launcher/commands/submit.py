"""`gemfleet submit`"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import Config, Json, Name, Overrides, Resume, RunId, checked_id, with_name


def submit(
    config: Config,
    address: Annotated[
        str | None, typer.Option(help="The head's dashboard, http://HEAD:8265. [default: this machine's]")
    ] = None,
    hosts: Annotated[
        Path | None, typer.Option(help="The file of `gemfleet cluster up`: go to its head, through a tunnel over ssh.")
    ] = None,
    overrides: Overrides = None,
    name: Name = None,
    resume: Resume = None,
    run_id: RunId = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show the job's output until it ends.")] = False,
    as_json: Json = False,
) -> None:
    """Run a configuration on a cluster from any machine, through Ray's job API.

    The folder of CONFIG travels with the job, at most 100 MiB, and the command lists what travels. Hidden files,
    credentials, links that lead out, model weights, repositories and files over 10 MiB stay. A `.gemfleetignore` in the
    folder names, as a .gitignore does, what else stays. Put larger data on the head node and give its absolute path
    there.

    Examples:

      gemfleet submit finetune.yaml --address http://head:8265 --follow

      gemfleet submit finetune.yaml --set train.lora.r=8 --name small-rank

      gemfleet submit finetune.yaml --hosts hosts.yaml --follow
    """
    if hosts is None:
        _submit(config, address, with_name(overrides, name), resume, checked_id(run_id), follow, as_json)
        return
    from gemfleet.launcher.submit.cluster_file import load_hosts, tunnel, use_token
    from gemfleet.train.errors import UserError

    if address is not None:
        raise UserError("--address and --hosts both name a cluster; give one of them")
    description = load_hosts(hosts)
    use_token(description)
    with tunnel(description) as head:
        _submit(config, head, with_name(overrides, name), resume, checked_id(run_id), follow, as_json)


def _submit(
    config: Path,
    address: str | None,
    wanted: list[str],
    resume: str | None,
    run_id: str | None,
    follow: bool,
    as_json: bool,
) -> None:
    import json

    from gemfleet.launcher.config.load import load_config
    from gemfleet.launcher.submit import job

    head = address or job.default_address()
    client, sent = job.submit(config, load_config(config, wanted), wanted, head, resume, run_id, _tell)
    if as_json:
        typer.echo(json.dumps({"job": sent, "address": head}))
    else:
        typer.echo(f"submitted {sent}; its output: ray job logs --address {head} --follow {sent}")
    if not follow:
        return
    try:
        status = job.follow(client, sent, _write)
    except KeyboardInterrupt:
        typer.echo("\nthe job goes on; stop it on the head with `gemfleet stop latest`", err=True)
        raise typer.Exit(130) from None
    if status != "SUCCEEDED":
        typer.echo(f"error: job {sent} ended as {status}", err=True)
        raise typer.Exit(1)


def _tell(sentence: str) -> None:
    typer.echo(sentence, err=True)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()

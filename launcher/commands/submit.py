"""`gemfleet submit`"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import (
    Config,
    Json,
    Name,
    Overrides,
    Resume,
    RunId,
    Tags,
    checked_id,
    parsed_tags,
    refuse_tags_of_old,
    with_name,
)


def submit(
    config: Config,
    address: Annotated[
        str | None, typer.Option(help="The head's dashboard, http://HEAD:8265. [default: this machine's]")
    ] = None,
    hosts: Annotated[
        Path | None, typer.Option(help="The file of `gemfleet cluster up`: go to its head, through a tunnel over ssh.")
    ] = None,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Queue the run with Slurm's `sbatch`; Slurm says what --hosts leaves out.")
    ] = False,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="GPUs of a job of --slurm. [default: cluster.workers, else one node's]")
    ] = None,
    overrides: Overrides = None,
    name: Name = None,
    resume: Resume = None,
    run_id: RunId = None,
    tags: Tags = None,
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

      gemfleet submit finetune.yaml --slurm --gpus 16
    """
    parsed_tags(tags)
    refuse_tags_of_old(tags, resume)
    if slurm:
        _refuse_beside_slurm(tags, address=address, resume=resume, id=run_id, follow=follow)
        _submit_to_slurm(config, hosts, with_name(overrides, name), gpus, as_json)
        return
    if gpus is not None:
        raise typer.BadParameter("--gpus is for --slurm; the number of ranks is cluster.workers")
    if hosts is None:
        _submit(config, address, with_name(overrides, name), resume, checked_id(run_id), tags or [], follow, as_json)
        return
    from gemfleet.launcher.submit.cluster_file import load_hosts, tunnel, use_token
    from gemfleet.train.errors import UserError

    if address is not None:
        raise UserError("--address and --hosts both name a cluster; give one of them")
    description = load_hosts(hosts)
    use_token(description)
    with tunnel(description) as head:
        _submit(config, head, with_name(overrides, name), resume, checked_id(run_id), tags or [], follow, as_json)


def _refuse_beside_slurm(tags: list[str] | None, **options: object) -> None:
    from gemfleet.train.errors import UserError

    if tags:
        raise UserError(
            f"--tag does not travel with --slurm; once the run is there: `gemfleet tag slurm-JOB {tags[0]}`"
        )
    if given := next((name for name, value in options.items() if value), None):
        raise UserError(f"--{given} has no meaning with --slurm, which gives the run its job's id; leave it out")


def _submit_to_slurm(config: Path, hosts: Path | None, wanted: list[str], gpus: int | None, as_json: bool) -> None:
    """Queue a job whose script brings the configuration along. Paths of data and models count on its first node."""
    import json

    from gemfleet.cluster.bringup.slurm_queue import filled_in, queue
    from gemfleet.cluster.bringup.templates.slurm import batch_script
    from gemfleet.launcher.config.cluster import ranks_of
    from gemfleet.launcher.config.load import dump_config, load_config
    from gemfleet.launcher.submit.cluster_file import load_description

    loaded, description = load_config(config, wanted), load_description(hosts)
    section = filled_in(description.slurm)
    description = description.model_copy(update={"slurm": section})
    wanted_gpus = gpus or ranks_of(loaded.cluster.workers) or section.gpus_per_node
    job = queue(batch_script(description, wanted_gpus, dump_config(loaded)))
    if as_json:
        typer.echo(json.dumps({"job": job, "run": f"slurm-{job}", "slurm": section.model_dump()}))
        return
    nodes = wanted_gpus // section.gpus_per_node
    where = f"{nodes} x {section.gpus_per_node} GPUs of {section.partition}, at most {section.time_limit}"
    typer.echo(f"queued job {job} ({where}); its run is slurm-{job}; its output: slurm-{job}.out")


def _submit(
    config: Path,
    address: str | None,
    wanted: list[str],
    resume: str | None,
    run_id: str | None,
    tags: list[str],
    follow: bool,
    as_json: bool,
) -> None:
    import json

    from gemfleet.launcher.config.load import load_config
    from gemfleet.launcher.submit import job

    head = address or job.default_address()
    client, sent = job.submit(config, load_config(config, wanted), wanted, head, resume, run_id, _tell, tags)
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

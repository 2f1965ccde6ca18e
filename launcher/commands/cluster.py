"""`gemfleet cluster`"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Json

if TYPE_CHECKING:
    from gemfleet.cluster.bringup.description import ClusterDescription
    from gemfleet.cluster.bringup.operate import NodeStatus, Operator

cluster = typer.Typer(
    name="cluster",
    help="Bring a Ray cluster up and down on machines that are reached over ssh.",
    no_args_is_help=True,
)
HostsFile = Annotated[Path, typer.Argument(help="File that describes the cluster.", show_default=False)]
Hosts = Annotated[list[str], typer.Argument(help="Workers of the file, by `host` or `address`.", show_default=False)]


@cluster.command("up")
def up(hosts_file: HostsFile) -> None:
    """Start Ray on every machine of the file, and wait until all are one cluster. You may repeat it.

    Makes the token that every request to the cluster needs. The dashboard listens on the head's loopback address only.

    Examples:

      gemfleet cluster up hosts.yaml
    """
    description, operator = _open(hosts_file)
    operator.up(_token(description))
    count = len(description.nodes())
    typer.echo(f"up: {count} node{'s' if count > 1 else ''}, head {operator.addresses[operator.head.host]}")
    _tell_how_to_use(hosts_file, description)


@cluster.command("add")
def add(hosts_file: HostsFile, hosts: Hosts) -> None:
    """Add workers of the file to the running cluster. Write a new machine into the file first.

    Examples:

      gemfleet cluster add hosts.yaml 10.0.0.7
    """
    description, operator = _open(hosts_file)
    operator.add(hosts, _token(description))
    typer.echo(f"added: {', '.join(hosts)}")


@cluster.command("remove")
def remove(
    hosts_file: HostsFile,
    hosts: Hosts,
    drain_s: Annotated[int, typer.Option(min=0, help="Seconds for the ranks there to save and leave.")] = 60,
) -> None:
    """Drain workers and stop Ray on them. Take them out of the file afterwards, or `up` starts them again.

    Examples:

      gemfleet cluster remove hosts.yaml 10.0.0.7 --drain-s 300
    """
    _, operator = _open(hosts_file)
    operator.remove(hosts, drain_s)
    typer.echo(f"removed: {', '.join(hosts)}; take them out of {hosts_file}, or `up` starts them again")


@cluster.command("down")
def down(hosts_file: HostsFile) -> None:
    """Stop Ray on every machine of the file. Runs end as interrupted; their checkpoints stay on the head's disk.

    Examples:

      gemfleet cluster down hosts.yaml
    """
    _, operator = _open(hosts_file)
    operator.down()
    typer.echo("down")


@cluster.command("status")
def status(hosts_file: HostsFile, as_json: Json = False) -> None:
    """Say of each machine of the file whether it answers, runs Ray and is in the cluster. Exit code 1 if one is not.

    Examples:

      gemfleet cluster status hosts.yaml
    """
    import json

    from .tables import print_table

    _, operator = _open(hosts_file)
    found = operator.status()
    if as_json:
        typer.echo(json.dumps([_record(entry) for entry in found], indent=2))
    else:
        columns = ["host", "address", "state", "CPUs", "GPUs", "gemfleet", "ray"]
        print_table(columns, [[str(value) for value in list(_record(entry).values())[:7]] for entry in found])
        for entry in found:
            if entry.problem:
                typer.echo(entry.problem, err=True)
    if not all(entry.alive for entry in found):
        raise typer.Exit(1)


@cluster.command("manifest")
def manifest(
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of all workers together.")],
    kind: Annotated[
        str, typer.Option(help="`ray-cluster` or `ray-job` for KubeRay, `slurm`, or `aws` or `gcp` for `ray up`.")
    ] = "ray-cluster",
    hosts: Annotated[Path | None, typer.Option(help="File that describes the cluster. [default: all defaults]")] = None,
    config: Annotated[
        Path | None, typer.Option(help="The run of a `ray-job`, or one that the script for `slurm` brings along.")
    ] = None,
) -> None:
    """Print what Kubernetes, Slurm or Ray's launcher needs for the same cluster. No machine is touched.

    Examples:

      gemfleet cluster manifest --gpus 16 --hosts hosts.yaml > cluster.yaml && kubectl apply -f cluster.yaml

      gemfleet cluster manifest --gpus 16 --kind slurm > run.sh && sbatch run.sh run.yaml
    """
    from gemfleet.cluster.bringup.templates.render import KINDS, render
    from gemfleet.launcher.submit.cluster_file import load_description
    from gemfleet.train.errors import UserError

    if kind not in KINDS:
        raise UserError(f"--kind {kind!r} is unknown; give one of {', '.join(KINDS)}")
    run = None
    if config is not None:
        from gemfleet.launcher.config.load import load_config

        load_config(config)  # names its mistakes here rather than on the cluster
        run = config.read_text(encoding="utf-8")
    typer.echo(render(kind, load_description(hosts), gpus, run), nl=False)


def _record(entry: NodeStatus) -> dict[str, object]:
    facts = entry.facts or {}
    stopped = "running, not joined" if facts.get("ours") else "stopped"
    state = "in the cluster" if entry.alive else stopped if entry.facts else "not reached"
    return {
        "host": entry.node.host,
        "address": entry.address,
        "state": state,
        "cpus": entry.cpus,
        "gpus": entry.gpus,
        "gemfleet": facts.get("gemfleet") or "",
        "ray": facts.get("ray") or "",
        "problem": entry.problem,
    }


def _open(hosts_file: Path) -> tuple[ClusterDescription, Operator]:
    from gemfleet.cluster.bringup.operate import Operator
    from gemfleet.launcher.submit.cluster_file import load_hosts

    description = load_hosts(hosts_file)
    return description, Operator(description, lambda text: typer.echo(f"{text} …", err=True))


def _token(description: ClusterDescription) -> str:
    from gemfleet.cluster.token_file import load_token
    from gemfleet.launcher.submit.cluster_file import token_path

    return load_token(token_path(description))


def _tell_how_to_use(hosts_file: Path, description: ClusterDescription) -> None:
    from gemfleet.launcher.submit.cluster_file import token_path, tunnel_command

    path = shlex.quote(str(token_path(description)))
    port = description.ports.dashboard
    typer.echo(f"submit:    gemfleet submit run.yaml --hosts {shlex.quote(str(hosts_file))} --follow")
    typer.echo(f"dashboard: {shlex.join(tunnel_command(description))}")
    typer.echo(f"           then http://127.0.0.1:{port}, with the token in {path}; for Ray's own commands:")
    typer.echo(f"           export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={path}")

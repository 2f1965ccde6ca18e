"""`gemfleet doctor`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Json

if TYPE_CHECKING:
    from gemfleet.cluster.doctor.report import Finding

COLOURS = {"pass": "green", "warn": "yellow", "fail": "red"}


def doctor(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="Also check its model. [default: none]")
    ] = None,
    hosts: Annotated[
        Path | None, typer.Option(help="The file of `gemfleet cluster up`: examine that cluster, from its head.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only the checks of every run's preflight; measures nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Examine all nodes of the cluster, the network between them and the stores: pass, warn or fail, with a remedy.

    Runs on the head, or from anywhere with `--hosts`. The dashboard shows what the last whole examination found. Exit
    code 1 when a check failed; warnings do not count.

    Examples:

      gemfleet doctor

      gemfleet doctor --hosts hosts.yaml --json
    """
    if hosts is not None:
        raise typer.Exit(_on_head(hosts, config, quick, as_json))
    import json
    from dataclasses import asdict

    from gemfleet.cluster.doctor.report import failures

    findings = _examine(config, quick)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _print(findings)
    raise typer.Exit(1 if failures(findings) else 0)


def _examine(config: Path | None, quick: bool) -> list[Finding]:
    import time

    from gemfleet.cluster.doctor.examine import Examination, check_quickly, examine
    from gemfleet.cluster.doctor.report import keep_findings
    from gemfleet.cluster.inventory import list_nodes
    from gemfleet.launcher.config.cluster import ClusterConfig
    from gemfleet.launcher.config.load import load_config
    from gemfleet.launcher.run.connect import connected
    from gemfleet.train.config.home import gemfleet_home

    loaded = load_config(config) if config is not None else None
    with connected(loaded.cluster if loaded else ClusterConfig()):
        nodes = list_nodes()
        if quick:
            return check_quickly(nodes, gemfleet_home())
        work = Examination(nodes, gemfleet_home(), loaded.train.model if loaded else None)
        started = time.monotonic()
        findings = examine(work, lambda text: typer.echo(f"{text} …", err=True))
        keep_findings(gemfleet_home(), findings)
        typer.echo(f"examined {len(nodes)} nodes in {time.monotonic() - started:.0f} s", err=True)
        return findings


def _print(findings: list[Finding]) -> None:
    from rich.text import Text

    from .tables import print_table

    def row(finding: Finding) -> list[str | Text]:
        level = Text(finding.level.value, COLOURS[finding.level.value])
        return [level, finding.check, finding.where, finding.figure, finding.remedy]

    print_table(
        ["", "check", "where", "figure", "remedy"],
        [row(finding) for finding in findings],
        ("where", "figure", "remedy"),
    )
    counts = {level: sum(finding.level == level for finding in findings) for level in COLOURS}
    typer.echo(", ".join(f"{count} {level}" for level, count in counts.items()))


def _on_head(hosts: Path, config: Path | None, quick: bool, as_json: bool) -> int:
    """Run the same command on the cluster's head, over ssh. Returns its exit code."""
    import sys

    from gemfleet.cluster.bringup import scripts
    from gemfleet.cluster.bringup.ssh import Ssh
    from gemfleet.launcher.submit.cluster_file import load_hosts
    from gemfleet.train.errors import UserError

    if config is not None:
        raise UserError("CONFIG and --hosts do not go together; run `gemfleet doctor CONFIG` on the head")
    description = load_hosts(hosts)
    assert description.head is not None, "load_hosts saw to it"
    options = [*(["--quick"] if quick else []), *(["--json"] if as_json else [])]
    script = f"{scripts.inside(description)}exec gemfleet doctor {' '.join(options)} < /dev/null\n"
    answer = Ssh(description.ssh).run(description.head, script, timeout_s=600)
    sys.stdout.write(answer.output)
    sys.stderr.write(answer.errors)
    return answer.code

"""Asks Slurm what a batch script needs to say, and queues it."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any, NamedTuple

from gemfleet.cluster.errors import ClusterError

from .sections import SlurmSection

FIELDS = "%P|%G|%c|%l"
TIMEOUT_S = 60


class Partition(NamedTuple):
    """What `sinfo` says of nodes of one kind. time_limit: D-HH:MM:SS; None where there is none"""

    name: str
    default: bool
    gpus: int
    cpus: int
    time_limit: str | None


def filled_in(section: SlurmSection) -> SlurmSection:
    """The section, in which Slurm's own answers stand for what the person left out.

    The partition is the default one, or the only one with GPUs. GPUs and cores are those of its smallest nodes.
    Raises ClusterError where Slurm does not answer, or no partition has GPUs.
    """
    partitions = parse(_output(["sinfo", "--noheader", f"--format={FIELDS}"]))
    nodes = [node for node in partitions if node.gpus and section.partition in (None, node.name)]
    if section.partition is None:
        named = {node.name for node in nodes}
        nodes = [node for node in nodes if node.default or len(named) == 1]
    if not nodes:
        have = ", ".join(sorted({node.name for node in partitions if node.gpus})) or "none"
        asked = "the default partition" if section.partition is None else f"slurm.partition {section.partition}"
        raise ClusterError(f"{asked} has no GPUs by `sinfo`; partitions with GPUs: {have}; name one in slurm.partition")
    found: dict[str, Any] = {
        "partition": nodes[0].name,
        "gpus_per_node": min(node.gpus for node in nodes),
        "cpus_per_node": min(node.cpus for node in nodes),
    }
    if nodes[0].time_limit is not None:
        found["time_limit"] = nodes[0].time_limit
    left_out = {name: value for name, value in found.items() if name not in section.model_fields_set}
    return section.model_copy(update=left_out)


def parse(text: str) -> list[Partition]:
    """The lines of `sinfo --format=%P|%G|%c|%l`."""
    found = []
    for line in text.split():
        name, gres, cpus, limit = line.split("|")
        gpus = sum(int(count) for count in re.findall(r"\bgpu:(?:[^:,()]+:)?(\d+)", gres))
        # Slurm leaves hours out where there are none, as in 30:00.
        time_limit = None if limit in ("infinite", "n/a") else limit if limit.count(":") == 2 else f"00:{limit:0>5}"
        found.append(Partition(name.rstrip("*"), name.endswith("*"), gpus, int(cpus.rstrip("+")), time_limit))
    return found


def queue(script: str) -> str:
    """Queues the text of a script. Returns the job's id. Raises ClusterError if Slurm refuses."""
    return _output(["sbatch", "--parsable", "/dev/stdin"], script).strip().partition(";")[0]


def _output(command: list[str], text: str | None = None) -> str:
    if shutil.which(command[0]) is None:
        raise ClusterError(f"this machine has no `{command[0]}`; run the command where Slurm's commands are")
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise ClusterError(f"`{command[0]}` did not answer within {TIMEOUT_S} s; try again when Slurm does") from None
    if done.returncode:
        raise ClusterError(f"`{command[0]}` refused: {(done.stderr or done.stdout).strip()}")
    return done.stdout

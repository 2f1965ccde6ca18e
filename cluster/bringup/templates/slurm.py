"""A batch script for Slurm: Ray runs on all nodes of the job for as long as one run takes."""

from __future__ import annotations

import shlex

from gemfleet.cluster.errors import ClusterError

from ..description import ClusterDescription
from ..ssh import home_path

BODY = r"""
set -euo pipefail
umask 077
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
state="$HOME/.gemfleet-cluster/slurm-$SLURM_JOB_ID"
mkdir -p "$state"
trap 'rm -rf "$state"' EXIT
python -c 'import secrets; print(secrets.token_urlsafe(32))' > "$state/token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$state/token" RAY_ADDRESS="$address:$gcs_port"

# `--block`: Ray lives and ends with its step. The first task of the job is on the first node, the head.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=1 bash -c '
    options="--num-gpus=$gpus_per_node --num-cpus=$SLURM_CPUS_PER_TASK --disable-usage-stats --block"
    if [[ $SLURM_PROCID -eq 0 ]]; then
        exec ray start --head --node-ip-address="$0" --port="$gcs_port" --dashboard-host=127.0.0.1 $options
    fi
    sleep 15
    exec ray start --address="$0:$gcs_port" $options
' "$address" &

for _ in $(seq 60); do
    alive=$(ray status 2> /dev/null | grep -c '^ 1 node_' || true)
    [[ $alive -ge $SLURM_JOB_NUM_NODES ]] && break
    sleep 5
done

# The driver must be on the head, where the registry and the checkpoints are: the batch step is on the first node.
# Before the time is over Slurm sends SIGTERM to this script, which asks for a last checkpoint.
trap 'gemfleet stop latest' TERM
gemfleet train "$1" &
driver=$!
until wait "$driver"; do
    code=$?
    kill -0 "$driver" 2> /dev/null || exit "$code"
done
"""


def batch_script(description: ClusterDescription, gpus: int) -> str:
    """The script for `sbatch script.sh run.yaml`. ClusterError when `gpus` GPUs do not fill whole nodes.

    The token is in a folder of the person's home, which all nodes share under Slurm.
    """
    section = description.slurm
    nodes, rest = divmod(gpus, section.gpus_per_node)
    if rest or not nodes:
        raise ClusterError(
            f"--gpus {gpus} is no multiple of slurm.gpus_per_node, {section.gpus_per_node}; change one of them"
        )
    options = {
        "job-name": description.name,
        "nodes": nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": section.gpus_per_node,
        "cpus-per-task": section.cpus_per_node,
        "exclusive": None,
        "time": section.time_limit,
        "signal": f"B:TERM@{description.job_stop_wait_s}",
        "partition": section.partition,
        "account": section.account,
    }
    lines = [
        f"#SBATCH --{name}" + ("" if value is None else f"={value}")
        for name, value in options.items()
        if value is not None or name == "exclusive"
    ]
    path = [f'export PATH={home_path(description.programs)}:"$PATH"'] if description.programs else []
    variables = {**description.environment, "gpus_per_node": section.gpus_per_node, "gcs_port": description.ports.gcs}
    exports = [f"export {name}={shlex.quote(str(value))}" for name, value in variables.items()]
    home = f"export GEMFLEET_HOME={home_path(description.home)}"
    return "\n".join(["#!/bin/bash", *lines, "", *path, home, *exports]) + BODY

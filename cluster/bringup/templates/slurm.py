"""A batch script for Slurm: Ray runs on all nodes of the job for as long as one run takes."""

from __future__ import annotations

import shlex

from gemfleet.cluster.errors import ClusterError

from ..description import ClusterDescription
from ..scripts import HEREDOC
from ..ssh import home_path

BODY = r"""
set -euo pipefail
umask 077
run="slurm-${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+-$SLURM_ARRAY_TASK_ID}"
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
on() { srun --overlap --nodes=1 --ntasks=1 --nodelist="$1" "${@:2}"; }

# The head keeps the run's folder. A job that Slurm starts again finds it there, whatever node comes first now.
has_run='[[ ! -d $GEMFLEET_HOME/runs/$0 ]] || echo "$SLURMD_NODENAME"'
holders=$(srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 bash -c "$has_run" "$run")
holder=$(grep --line-regexp --fixed-strings "$holders" <<< "$nodes" | sed -n 1p || true)
began=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%k | sed -n 's/^gemfleet head //p')
if [[ -z $holder && -n $began ]] && ! grep -qxF "$began" <<< "$nodes"; then
    echo "the run $run is on $began, which this job did not get; the job is held. Let it have that node:" \
        "scontrol update JobId=$SLURM_JOB_ID ReqNodeList=$began && scontrol release $SLURM_JOB_ID" >&2
    scontrol requeuehold "$SLURM_JOB_ID"
    sleep 60  # Slurm ends the script
    exit 1
fi
head=${holder:-$(sed -n 1p <<< "$nodes")}
scontrol update JobId="$SLURM_JOB_ID" Comment="gemfleet head $head" || true

@CONFIGURATION@
# Homes may be private, so the token is in no file: steps get it in their environment, which only this user can read.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_urlsafe(32))')
peer=$(grep -vxF "$head" <<< "$nodes" | sed -n 1p || true)
[[ -z $peer ]] || peer=$(scontrol show node "$peer" | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2)
address=$(on "$head" python -m gemfleet.cluster.bringup.on_node address $peer | tr -d '"')
export RAY_ADDRESS="$address:$gcs_port"

# `--block`: Ray lives and ends with its step.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=1 bash -c '
    options="--num-gpus=$gpus_per_node --num-cpus=$SLURM_CPUS_PER_TASK --disable-usage-stats --block"
    if [[ $SLURMD_NODENAME == "$0" ]]; then
        exec ray start --head --node-ip-address="$1" --port="$gcs_port" --dashboard-host=127.0.0.1 $options
    fi
    until (: < "/dev/tcp/$1/$gcs_port") 2> /dev/null; do sleep 1; done
    exec ray start --address="$1:$gcs_port" $options
' "$head" "$address" &
python -m gemfleet.cluster.bringup.on_node wait "$RAY_ADDRESS" "$SLURM_JOB_NUM_NODES" 300

# Before the time is over Slurm sends SIGTERM to this script alone, which asks for a last checkpoint.
asked=
trap 'asked=yes; on "$head" gemfleet stop "$run" || true' TERM
begin=(--id "$run")
[[ -z $holder ]] || begin=(--resume "$run")
on "$head" gemfleet train "$@" "${begin[@]}" &
driver=$!
code=0
while wait "$driver" && code=0 || code=$?; do
    kill -0 "$driver" 2> /dev/null || break
done
stopped() { on "$head" gemfleet show "$run" --json | grep -q '"state": "stopped"'; }
if [[ -n $asked && $requeue == yes ]] && stopped; then
    echo "the time is over; $run has its checkpoint and goes on when Slurm starts the job again"
    scontrol requeue "$SLURM_JOB_ID"
    sleep 60
fi
exit "$code"
"""


# The script brings the configuration along, to the node where the run is.
CONFIGURATION = r"""
on "$head" bash -c 'mkdir -p "$GEMFLEET_HOME/slurm" && cat > "$GEMFLEET_HOME/slurm/$0.yaml"' "$run" <<'@END@'
@TEXT@@END@
set -- "$GEMFLEET_HOME/slurm/$run.yaml" "$@"
"""


def batch_script(description: ClusterDescription, gpus: int, config: str | None = None) -> str:
    """The script for `sbatch script.sh run.yaml [OPTIONS OF gemfleet train]`. No file need be shared between nodes.

    config: the content of the configuration, which then travels in the script, and `run.yaml` is left out
    Raises ClusterError when `gpus` GPUs do not fill whole nodes.
    """
    section = description.slurm
    nodes, rest = divmod(gpus, section.gpus_per_node)
    if rest or not nodes:
        raise ClusterError(
            f"--gpus {gpus} is no multiple of slurm.gpus_per_node, {section.gpus_per_node}; change one of them"
        )
    options = {  # an empty text: the option takes no value; None: it is left out
        "job-name": description.name,
        "nodes": nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": section.gpus_per_node,
        "cpus-per-task": section.cpus_per_node,
        "exclusive": "",
        "time": section.time_limit,
        "signal": f"B:TERM@{description.job_stop_wait_s}",
        "open-mode": "append",
        "requeue" if section.requeue else "no-requeue": "",
        "partition": section.partition,
        "account": section.account,
    }
    lines = [
        f"#SBATCH --{name}" + (f"={value}" if value != "" else "")
        for name, value in options.items()
        if value is not None
    ]
    path = [f'export PATH={home_path(description.programs)}:"$PATH"'] if description.programs else []
    own = {
        "gpus_per_node": section.gpus_per_node,
        "gcs_port": description.ports.gcs,
        "requeue": "yes" if section.requeue else "no",
    }
    variables = {**description.environment, **own}
    exports = [f"export {name}={shlex.quote(str(value))}" for name, value in variables.items()]
    brought = "" if config is None else CONFIGURATION.replace("@END@", HEREDOC).replace("@TEXT@", config)
    body = BODY.replace("@CONFIGURATION@\n", brought)
    home = f"export GEMFLEET_HOME={home_path(description.home)}"
    return "\n".join(["#!/bin/bash", *lines, "", *path, home, *exports]) + body

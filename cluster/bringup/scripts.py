"""The shell scripts that nodes run. Each is a pure function of the description."""

from __future__ import annotations

import shlex

from ..network import INTERFACE_VARIABLES
from .description import ClusterDescription, NodeSection
from .on_node import MARKER
from .ssh import exports, home_path

HEREDOC = "GEMFLEET_END_OF_FILE"


def folder(description: ClusterDescription) -> str:
    """The folder on a node with the cluster's token and environment."""
    return f"~/.gemfleet-cluster/{description.name}"


def environment(description: ClusterDescription, node: NodeSection) -> dict[str, str]:
    """The variables of every Ray process on `node`."""
    pinned = {} if node.interface is None else dict.fromkeys(INTERFACE_VARIABLES, node.interface)
    return {
        "GEMFLEET_HOME": description.home,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": f"{folder(description)}/token",
        "RAY_JOB_STOP_WAIT_TIME_S": str(description.job_stop_wait_s),
        **pinned,
        **description.environment,
        **node.environment,
    }


def prelude(description: ClusterDescription) -> str:
    """The first lines of every script: it stops at the first failure and finds the programs."""
    path = f'export PATH={home_path(description.programs)}:"$PATH"\n' if description.programs else ""
    return f"set -eu\n{path}"


def look(description: ClusterDescription) -> str:
    """Prints the node's facts as one line of JSON."""
    return f"{prelude(description)}python -m gemfleet.cluster.bringup.on_node facts {description.name}\n"


def prepare(description: ClusterDescription, node: NodeSection, token: str) -> str:
    """Writes the token, which only its owner can read, and the environment; then runs the operator's own commands."""
    variables = exports(environment(description, node))
    setup = "".join(f"( {command} ) < /dev/null\n" for command in description.setup)
    return (
        f"{prelude(description)}umask 077\nmkdir -p {home_path(folder(description))}\n"
        f"cd {home_path(folder(description))}\n"
        f"cat > token <<'{HEREDOC}'\n{token}\n{HEREDOC}\n"
        f"cat > environment.sh <<'{HEREDOC}'\n{variables}{HEREDOC}\n"
        f"umask 022\ncd\n{setup}"
    )


def start(description: ClusterDescription, node: NodeSection, address: str, head_address: str) -> str:
    """Starts Ray. `address`: this node's own; `head_address`: the head's."""
    ports = description.ports
    options = {
        "node-ip-address": address,
        "node-manager-port": ports.node_manager,
        "object-manager-port": ports.object_manager,
        "runtime-env-agent-port": ports.runtime_env_agent,
        "dashboard-agent-grpc-port": ports.agent_grpc,
        "dashboard-agent-listen-port": ports.agent_http,
        "metrics-export-port": ports.metrics,
        "min-worker-port": ports.workers_from,
        "max-worker-port": ports.workers_to,
    }
    if node == description.head:
        options |= {
            "port": ports.gcs,
            "dashboard-host": "127.0.0.1",
            "dashboard-port": ports.dashboard,
            "ray-client-server-port": ports.client,
        }
    else:
        options["address"] = f"{head_address}:{ports.gcs}"
    optional = {
        "num-cpus": node.cpus,
        "num-gpus": node.gpus,
        "object-store-memory": description.object_store_gib and int(description.object_store_gib * 2**30),
    }
    options |= {name: value for name, value in optional.items() if value is not None}
    words = " ".join(shlex.quote(f"--{name}={value}") for name, value in options.items())
    role = "--head " if node == description.head else ""
    # The marker tells this cluster's processes from others. It is not in the file, because a person may source that.
    marker = exports({MARKER: description.name})
    return f"{inside(description)}{marker}ulimit -c 0\nray start {role}{words} --disable-usage-stats < /dev/null\n"


def inside(description: ClusterDescription) -> str:
    """The first lines of a script whose commands talk to the running cluster."""
    return f"{prelude(description)}. {home_path(folder(description))}/environment.sh\n"


def nodes(description: ClusterDescription) -> str:
    """On the head: prints the living nodes as one line of JSON, see `on_node.nodes`."""
    address = f"127.0.0.1:{description.ports.gcs}"
    return f"{inside(description)}python -m gemfleet.cluster.bringup.on_node nodes {address} < /dev/null\n"


def drain(description: ClusterDescription, address: str, seconds: int) -> str:
    """On the head: Ray places nothing new on the node at `address`, and tells the deadline to what runs there."""
    gcs = f"127.0.0.1:{description.ports.gcs}"
    arguments = f"{gcs} {shlex.quote(address)} {seconds}"
    return f"{inside(description)}python -m gemfleet.cluster.bringup.on_node drain {arguments} < /dev/null\n"


def stop(description: ClusterDescription, seconds: int) -> str:
    """Ends Ray and every process with the cluster's marker, and removes the token. Prints what did not end as JSON."""
    return (
        f"{prelude(description)}python -m gemfleet.cluster.bringup.on_node stop {description.name} {seconds}\n"
        f"rm -rf {home_path(folder(description))}\n"
    )

"""Asks Ray to start worker processes before there is work for them, so that a run need not wait for Python.

Ray gives an actor such a process where their environments are the same, word for word, and starts another one where
they differ: then the ones asked for end unused. They also end with the driver's job.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from .inventory import Node

log = logging.getLogger("gemfleet.cluster")
ANSWER_SECONDS = 5.0


def start_processes(counts: Mapping[str, int], nodes: Sequence[Node], written: str, seconds: int) -> None:
    """Starts processes on these nodes for actors of this job. Where a node does not answer, nothing is lost but time.

    counts:  how many on each node, by its id
    written: the actors' environment, see `environment`
    seconds: how long a process waits for an actor before it ends
    """
    for node in nodes:
        if counts.get(node.id, 0) > 0:
            try:
                _ask(node, counts[node.id], written, seconds)
            except Exception as error:  # gRPC's, or Ray's where its protocol has changed
                log.debug("no processes start ahead on %s: %s", node.address, error)


def environment(variables: Mapping[str, str], of_actor: bool) -> str:
    """The environment of an actor of this job, as Ray writes it. Ray compares the text.

    variables: all that it adds to the job's; of_actor: whether another actor with an environment starts it, and not
    the driver
    """
    import ray

    job = dict(ray.get_runtime_context().runtime_env)
    whole = {**job, "env_vars": {**job.get("env_vars", {}), **variables}}
    # Where two environments are joined, Ray's core writes the result, without spaces; else it is as Python wrote it.
    return json.dumps(whole, sort_keys=True, separators=(",", ":") if of_actor or job else None)


def _ask(node: Node, count: int, written: str, seconds: int) -> None:
    import ray
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import common_pb2, node_manager_pb2, node_manager_pb2_grpc

    request: Any = node_manager_pb2.PrestartWorkersRequest(
        language=common_pb2.Language.Value("PYTHON"), num_workers=count, keep_alive_duration_secs=seconds
    )
    request.job_id = bytes.fromhex(ray.get_runtime_context().get_job_id())
    request.runtime_env_info.serialized_runtime_env = written
    with init_grpc_channel(f"{node.address}:{node.port}") as channel:
        node_manager_pb2_grpc.NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=ANSWER_SECONDS)

"""What Ray Train's controller has of us: it prepares ranks, connects them, and decides their number. It needs no torch.

Ray's own backend for torch imports it in the controller too, and all ranks wait for that.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import ray.train
from gemfleet.cluster.phases import PHASES
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
GENERATION_VARIABLE = "GEMFLEET_GENERATION"
NCCL_HEEDS_ERRORS, NCCL_WAITS = "TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_BLOCKING_WAIT"
GROUP_TIMEOUT = timedelta(seconds=1800)


def prepare_rank(generation: int, on_gpu: bool) -> None:
    """Runs in each rank's process. Chooses the network interface of Ray's address, and shares the node's cores."""
    from gemfleet.cluster.network import pin_network_interface
    from gemfleet.train.device.cpu import hide_gpus

    PHASES.enter("imports torch")
    if not on_gpu:
        hide_gpus()  # Ray hides no GPUs from a process that has reserved none
    from gemfleet.train.device.abilities import prepare_process

    PHASES.enter("process group")
    pin_network_interface()
    threads = prepare_process(ray.train.get_context().get_local_world_size())
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(threads)
    os.environ[GENERATION_VARIABLE] = str(generation)


def join_group(address: str, port: int, on_gpu: bool) -> None:
    """Runs in each rank's process: joins the group of all ranks, which rank 0 keeps together at this address.

    It sets the variables that torchrun would set, which libraries read.
    """
    from torch import distributed

    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    numbers = {
        "MASTER_PORT": port,
        "RANK": rank,
        "WORLD_SIZE": world_size,
        "LOCAL_RANK": context.get_local_rank(),
        "LOCAL_WORLD_SIZE": context.get_local_world_size(),
        "NODE_RANK": context.get_node_rank(),
    }
    os.environ.update({"MASTER_ADDR": address, **{name: str(number) for name, number in numbers.items()}})
    if on_gpu and NCCL_WAITS not in os.environ:
        os.environ.setdefault(NCCL_HEEDS_ERRORS, "1")
    backend = "nccl" if on_gpu else "gloo"
    distributed.init_process_group(backend, timeout=GROUP_TIMEOUT, rank=rank, world_size=world_size)


class PreparedBackend(Backend):  # type: ignore[misc]
    """Begins the attempt, prepares all ranks and connects them.

    Ray's controller calls it once for each group of ranks that it starts, so each group has a newer generation. At the
    end it ends all ranks at once: Ray would first wait 5 s for one that is stuck, and to leave the group up to 30 s.
    """

    share_cuda_visible_devices = True  # the ranks of a node see each other's GPUs, which NCCL wants

    def on_start(self, worker_group: Any, backend_config: GroupConfig) -> None:
        on_gpu = backend_config.on_gpu
        worker_group.execute(prepare_rank, generation=backend_config.begin_attempt(), on_gpu=on_gpu)
        address, port = worker_group.execute_single(0, get_address_and_port)
        worker_group.execute(join_group, address=address, port=port, on_gpu=on_gpu)

    def on_shutdown(self, worker_group: Any, backend_config: GroupConfig) -> None:
        for worker in worker_group.get_workers():
            ray.kill(worker.actor)


@dataclass
class GroupConfig(BackendConfig):  # type: ignore[misc]
    """Ray's configuration of this backend.

    begin_attempt: called before each group of ranks starts; returns its generation, larger than all before
    on_gpu: whether each rank has reserved a GPU
    """

    begin_attempt: Callable[[], int] = lambda: 0
    on_gpu: bool = False

    @property
    def backend_cls(self) -> type[PreparedBackend]:
        return PreparedBackend


class FixedRanks(FixedScalingPolicy):  # type: ignore[misc]
    """Ray's policy for a fixed number of ranks, without the actor by which it asks an autoscaler.

    The ranks' placement group asks for the same resources, and the actor would be one more process before the first
    step.
    """

    def after_controller_start(self, train_run_context: Any) -> None:
        """Makes no actor."""

    def _maybe_send_resource_request(self) -> None:
        """Asks nobody."""

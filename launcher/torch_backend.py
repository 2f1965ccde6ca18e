"""Ray Train's torch backend, with what each rank must know about its own node set before the process group exists."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import ray.train
import ray.train.torch
import ray.util
from ray.train.torch.config import TorchConfig, _TorchBackend

SOCKET_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def prepare_rank() -> None:
    """Runs in each rank's process: choose the interface that carries the node's Ray address, and share its cores.

    By default gloo and NCCL listen where the host name resolves to, which is often 127.0.0.1: ranks of other hosts then
    never reach it. A value that the user has set for the node is left alone.
    """
    from gemfleet.cluster.inventory import interface_of_address
    from gemfleet.train.device import prepare_process

    interface = interface_of_address(ray.util.get_node_ip_address())
    if interface is not None:
        for variable in SOCKET_VARIABLES:
            os.environ.setdefault(variable, interface)
    threads = prepare_process(ray.train.get_context().get_local_world_size())
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(threads)


class PreparedTorchBackend(_TorchBackend):  # type: ignore[misc]
    """Prepares every rank, then creates the process group as Ray does."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(prepare_rank)
        super().on_start(worker_group, backend_config)


@dataclass
class PreparedTorchConfig(TorchConfig):  # type: ignore[misc]
    """`TorchConfig` whose ranks choose their interface and threads by themselves."""

    @property
    def backend_cls(self) -> type[PreparedTorchBackend]:
        return PreparedTorchBackend

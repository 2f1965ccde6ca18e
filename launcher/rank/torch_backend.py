"""Ray Train's torch backend, with what each rank must know about its own node set before the process group exists."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray.train
import ray.train.torch
from gemfleet.train.device.cpu import hide_gpus
from ray.train.torch.config import TorchConfig, _TorchBackend

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
GENERATION_VARIABLE = "GEMFLEET_GENERATION"


def prepare_rank(generation: int, on_gpu: bool) -> None:
    """Runs in each rank's process: choose the interface of the node's Ray address, and share the node's cores."""
    from gemfleet.cluster.network import pin_network_interface
    from gemfleet.train.device.abilities import prepare_process

    if not on_gpu:
        hide_gpus()  # Ray hides none from a process that has reserved none
    pin_network_interface()
    threads = prepare_process(ray.train.get_context().get_local_world_size())
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(threads)
    os.environ[GENERATION_VARIABLE] = str(generation)


class PreparedTorchBackend(_TorchBackend):  # type: ignore[misc]
    """Counts the attempt, prepares every rank, then creates the process group as Ray does.

    Ray's controller calls it once for every group of workers: after a lost rank the new group has a newer generation.
    """

    def on_start(self, worker_group: Any, backend_config: PreparedTorchConfig) -> None:
        worker_group.execute(prepare_rank, generation=backend_config.begin_attempt(), on_gpu=backend_config.on_gpu)
        super().on_start(worker_group, backend_config)

    def on_shutdown(self, worker_group: Any, backend_config: PreparedTorchConfig) -> None:
        """Nothing: Ray ends the ranks' processes next. Its own way waits up to 30 s for ranks that may be stuck."""


@dataclass
class PreparedTorchConfig(TorchConfig):  # type: ignore[misc]
    """`TorchConfig` whose ranks choose their interface and threads by themselves.

    begin_attempt: called before each group of workers starts; returns its generation, larger than all before it
    on_gpu: whether each rank has reserved a GPU
    """

    begin_attempt: Callable[[], int] = lambda: 0
    on_gpu: bool = False

    @property
    def backend_cls(self) -> type[PreparedTorchBackend]:
        return PreparedTorchBackend

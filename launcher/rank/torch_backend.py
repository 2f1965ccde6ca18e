"""Ray Train's torch backend. It prepares each rank for its node before Ray creates the process group."""

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
    """Runs in each rank's process. Chooses the network interface of Ray's address, and shares the node's cores."""
    from gemfleet.cluster.network import pin_network_interface
    from gemfleet.train.device.abilities import prepare_process

    if not on_gpu:
        hide_gpus()  # Ray hides no GPUs from a process that has reserved none
    pin_network_interface()
    threads = prepare_process(ray.train.get_context().get_local_world_size())
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(threads)
    os.environ[GENERATION_VARIABLE] = str(generation)


class PreparedTorchBackend(_TorchBackend):  # type: ignore[misc]
    """Begins the attempt and prepares all ranks, then creates the process group as Ray does.

    Ray's controller calls it once for each group of ranks that it starts, so each group has a newer generation.
    """

    def on_start(self, worker_group: Any, backend_config: PreparedTorchConfig) -> None:
        worker_group.execute(prepare_rank, generation=backend_config.begin_attempt(), on_gpu=backend_config.on_gpu)
        super().on_start(worker_group, backend_config)

    def on_shutdown(self, worker_group: Any, backend_config: PreparedTorchConfig) -> None:
        """Do nothing, because Ray ends the ranks next. Ray's own method waits up to 30 s for ranks that are stuck."""


@dataclass
class PreparedTorchConfig(TorchConfig):  # type: ignore[misc]
    """Ray's `TorchConfig` for this backend.

    begin_attempt: called before each group of ranks starts; returns its generation, larger than all before
    on_gpu: whether each rank has reserved a GPU
    """

    begin_attempt: Callable[[], int] = lambda: 0
    on_gpu: bool = False

    @property
    def backend_cls(self) -> type[PreparedTorchBackend]:
        return PreparedTorchBackend

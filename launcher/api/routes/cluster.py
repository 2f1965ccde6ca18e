"""The route of the cluster: its nodes and what is free on them, ranks, the queue, and what the doctor measured."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from fastapi import APIRouter
from gemfleet.cluster.inventory import Node
from gemfleet.launcher.api.cluster_schemas import ClusterStatus, Gpu, HeadStatus, NodeStatus
from gemfleet.launcher.api.cluster_views import examination, placed_ranks, waiting_runs
from gemfleet.launcher.api.services import Needed

router = APIRouter(tags=["cluster"])


@router.get("/cluster", summary="Nodes, GPUs, memory, utilisation")
def get_cluster(services: Needed) -> ClusterStatus:
    """An API inside the cluster knows its nodes. `gemfleet serve` knows only the head."""
    nodes = services.cluster.nodes()
    found = nodes or []
    cpus, gpus = sum(node.cpus for node in found), sum(node.gpus for node in found)
    return ClusterStatus(
        connected=nodes is not None,
        nodes=[_node(node) for node in found],
        cpus=cpus,
        cpu_reserved=_share(cpus - sum(node.free_cpus for node in found), cpus),
        gpus=gpus,
        gpu_reserved=_share(gpus - sum(node.free_gpus for node in found), gpus),
        head=head_status(services.settings.home),
        ranks=placed_ranks(services.reader),
        waiting=waiting_runs(services.reader),
        examination=examination(services.settings.home),
    )


def head_status(home: Path) -> HeadStatus:
    memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(home))
    return HeadStatus(
        hostname=socket.gethostname(),
        cpu_utilisation=min(1.0, psutil.cpu_percent() / 100),
        memory_bytes=memory.total,
        memory_used_bytes=memory.total - memory.available,
        disk_bytes=disk.total,
        disk_free_bytes=disk.free,
        gpus=gpus_here(),
    )


def gpus_here() -> list[Gpu]:
    """The GPUs of this machine, by NVIDIA's management library. None where that or a driver is missing."""
    try:
        import pynvml
    except ImportError:
        return []
    found = []
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            device = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory, rates = pynvml.nvmlDeviceGetMemoryInfo(device), pynvml.nvmlDeviceGetUtilizationRates(device)
            name = pynvml.nvmlDeviceGetName(device)
            found.append(
                Gpu(
                    index=index,
                    name=name if isinstance(name, str) else name.decode(),
                    memory_bytes=memory.total,
                    memory_used_bytes=memory.used,
                    utilisation=rates.gpu / 100,
                    celsius=_celsius(pynvml, device),
                )
            )
    return found


def _celsius(pynvml: Any, device: Any) -> float | None:
    try:
        return float(pynvml.nvmlDeviceGetTemperature(device, pynvml.NVML_TEMPERATURE_GPU))
    except pynvml.NVMLError:
        return None


def _node(node: Node) -> NodeStatus:
    return NodeStatus(
        id=node.id,
        address=node.address,
        hostname=node.hostname,
        is_head=node.is_head,
        cpus=node.cpus,
        cpus_free=node.free_cpus,
        gpus=node.gpus,
        gpus_free=node.free_gpus,
        gpu_kind=node.kind,
        memory_bytes=node.memory_bytes,
        object_store_bytes=node.object_store_bytes,
    )


def _share(part: float, whole: float) -> float:
    return min(1.0, max(0.0, part / whole)) if whole else 0.0

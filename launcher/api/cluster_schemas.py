"""What the API answers about nodes: their GPUs, the ranks on them, the ways between them, and who waits for them."""

from __future__ import annotations

from typing import Annotated, Literal

from gemfleet.cluster.doctor.report import Level
from pydantic import BaseModel, Field

Share = Annotated[float, Field(ge=0, le=1)]


class NodeStatus(BaseModel):
    """One living node. `*_free` is what no task or actor has reserved."""

    id: str
    address: str
    hostname: str
    is_head: bool
    cpus: float
    cpus_free: float
    gpus: float
    gpus_free: float
    gpu_kind: Annotated[str, Field(description="Ray's name of its GPUs; empty where it knows none", examples=["H100"])]
    memory_bytes: int
    object_store_bytes: int


class Gpu(BaseModel):
    index: int
    name: str
    memory_bytes: int
    memory_used_bytes: int
    utilisation: Share
    celsius: Annotated[float | None, Field(description="null where the driver does not tell")] = None


class HeadStatus(BaseModel):
    """The head node itself, as its operating system sees it."""

    hostname: str
    cpu_utilisation: Share
    memory_bytes: int
    memory_used_bytes: int
    disk_bytes: int
    disk_free_bytes: int
    gpus: list[Gpu]


class PlacedRank(BaseModel):
    """A rank of a run that goes on, and the load of its device in the newest step. null: no record tells it."""

    run_id: str
    rank: int
    node: Annotated[str, Field(description="Ray's id of the node")]
    address: str
    heartbeat_age_seconds: float
    memory_bytes: int | None = None
    memory_total_bytes: int | None = None
    utilisation: Share | None = None


class WaitingRun(BaseModel):
    """A run that has not been admitted to the cluster yet. What it asks for is null before it has asked."""

    run_id: str
    since: float
    ranks: int | None = None
    cpus_per_rank: float | None = None
    gpus_per_rank: float | None = None
    gpu_kind: Annotated[str | None, Field(description="empty when any will do")] = None
    waiting_for: str | None = None


class FindingView(BaseModel):
    """What `gemfleet doctor` says of one thing."""

    check: Annotated[str, Field(examples=["exchange"])]
    where: Annotated[str, Field(examples=["cluster"])]
    level: Level
    figure: Annotated[str, Field(examples=["256 MiB to the next of 2 ranks in 6 ms, 44.74 GB/s, 89% of the link"])]
    remedy: str


class Examination(BaseModel):
    """What `gemfleet doctor` found when it last measured the cluster."""

    examined_at: float
    findings: list[FindingView]


class ClusterStatus(BaseModel):
    object: Literal["cluster"] = "cluster"
    connected: Annotated[bool, Field(description="whether this API lives inside a Ray cluster and sees its nodes")]
    nodes: list[NodeStatus]
    cpus: float
    cpu_reserved: Annotated[float, Field(ge=0, le=1, description="share of all CPUs that is reserved")]
    gpus: float
    gpu_reserved: Share
    head: HeadStatus
    ranks: Annotated[list[PlacedRank], Field(description="of all runs that go on, by node")]
    waiting: Annotated[list[WaitingRun], Field(description="the queue, the first one first")]
    examination: Annotated[Examination | None, Field(description="null: no doctor has measured it yet")]

"""The sections of a description that only templates use: Kubernetes, Slurm, and clouds of Ray's own launcher."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|Ki|Mi|Gi|Ti)?$"


class Section(BaseModel):
    """Refuses unknown keys and coerces no values. Instances are frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class KubernetesSection(Section):
    """What a KubeRay manifest says beyond the number of GPUs."""

    namespace: Annotated[str, Field(min_length=1)] = "default"
    image: Annotated[
        str, Field(min_length=1, description="image with gemfleet, made from the Dockerfile beside the manifests")
    ] = "gemfleet:0.1.0"
    gpus_per_pod: Annotated[int, Field(ge=1, description="GPUs of one worker pod")] = 8
    gpu_resource: Annotated[str, Field(min_length=1, description="resource name of the device plugin")] = (
        "nvidia.com/gpu"
    )
    cpus_per_pod: Annotated[int, Field(ge=1)] = 32
    memory_per_pod: Annotated[str, Field(pattern=QUANTITY)] = "256Gi"
    shared_memory: Annotated[str, Field(pattern=QUANTITY, description="/dev/shm of each pod: Ray's object store")] = (
        "64Gi"
    )
    head_cpus: Annotated[int, Field(ge=1)] = 8
    head_memory: Annotated[str, Field(pattern=QUANTITY)] = "32Gi"
    head_volume: Annotated[str, Field(pattern=QUANTITY, description="disk that keeps runs and checkpoints")] = "200Gi"
    storage_class: Annotated[str | None, Field(description="null: the cluster's default")] = None
    node_selector: dict[str, str] = Field(default_factory=dict, description="labels of the nodes for workers")
    queue: Annotated[
        str | None, Field(description="local queue of Kueue, which starts all pods or none; null: no gang scheduling")
    ] = None


class SlurmSection(Section):
    """What a batch script says beyond the number of nodes."""

    partition: Annotated[str | None, Field(description="null: the default one")] = None
    account: Annotated[str | None, Field(description="null: the default one")] = None
    gpus_per_node: Annotated[int, Field(ge=1)] = 8
    cpus_per_node: Annotated[int, Field(ge=1)] = 32
    time_limit: Annotated[str, Field(pattern=r"^(\d+-)?\d{1,2}:\d{2}:\d{2}$", description="D-HH:MM:SS")] = "24:00:00"
    requeue: Annotated[
        bool,
        Field(
            description="queue the job again when its time is over and the run is not: it goes on from its checkpoint"
        ),
    ] = True


class CloudSection(Section):
    """Machines of one cloud, for Ray's own launcher."""

    region: Annotated[str, Field(min_length=1)]
    zone: Annotated[str | None, Field(description="null: any of the region")] = None
    project: Annotated[str | None, Field(description="GCP only: the project's id")] = None
    head_type: Annotated[str, Field(min_length=1, description="machine type of the head, which needs no GPU")]
    worker_type: Annotated[str, Field(min_length=1, description="machine type of a worker")]
    gpus_per_worker: Annotated[int, Field(ge=1)] = 8
    image: Annotated[str | None, Field(description="machine image; null: Ray's default")] = None
    disk_gib: Annotated[int, Field(ge=50)] = 500

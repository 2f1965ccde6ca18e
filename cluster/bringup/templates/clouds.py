"""Configurations of Ray's own cluster launcher (`ray up`) for AWS and GCP."""

from __future__ import annotations

from typing import Any

from gemfleet.cluster.errors import ClusterError

from ..description import ClusterDescription

TOKEN_PATH = "~/.ray/auth_token"  # where Ray looks by itself
HEAD, WORKER = "head", "worker"


def aws(description: ClusterDescription, gpus: int) -> dict[str, Any]:
    """A configuration for EC2. The image must have NVIDIA's driver; AWS's Deep Learning images do.

    ClusterError when `gpus` GPUs do not fill whole machines.
    """
    section = description.aws
    image = {"ImageId": section.image} if section.image else {}
    disk = [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": section.disk_gib, "VolumeType": "gp3"}}]
    provider = {"type": "aws", "region": section.region}
    return _launcher(
        description,
        gpus // section.gpus_per_worker,
        gpus % section.gpus_per_worker,
        provider | ({"availability_zone": section.zone} if section.zone else {}),
        {"InstanceType": section.head_type, "BlockDeviceMappings": disk, **image},
        {"InstanceType": section.worker_type, "BlockDeviceMappings": disk, **image},
        section.gpus_per_worker,
    )


def gcp(description: ClusterDescription, gpus: int) -> dict[str, Any]:
    """A configuration for Compute Engine. ClusterError: see `aws`; also when project or zone are missing."""
    section = description.gcp
    if section.project is None or section.zone is None:
        raise ClusterError("gcp.project and gcp.zone are missing; give the project's id and the zone of the machines")
    image = section.image or "projects/deeplearning-platform-release/global/images/family/common-cu129-ubuntu-2204"
    disk = {"diskSizeGb": section.disk_gib, "sourceImage": image}

    def machine(kind: str) -> dict[str, Any]:
        disks = [{"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": disk}]
        # Machines with GPUs cannot be moved while they run.
        return {"machineType": kind, "disks": disks, "scheduling": [{"onHostMaintenance": "TERMINATE"}]}

    return _launcher(
        description,
        gpus // section.gpus_per_worker,
        gpus % section.gpus_per_worker,
        {"type": "gcp", "region": section.region, "availability_zone": section.zone, "project_id": section.project},
        machine(section.head_type),
        machine(section.worker_type),
        section.gpus_per_worker,
    )


def _launcher(
    description: ClusterDescription,
    workers: int,
    rest: int,
    provider: dict[str, Any],
    head: dict[str, Any],
    worker: dict[str, Any],
    gpus_per_worker: int,
) -> dict[str, Any]:
    """The token travels with `file_mounts`: they also reach workers that the head starts later."""
    name = provider["type"]
    if rest or not workers:
        raise ClusterError(f"--gpus is no multiple of {name}.gpus_per_worker, {gpus_per_worker}; change one of them")
    variables = {
        "RAY_AUTH_MODE": "token",
        "RAY_JOB_STOP_WAIT_TIME_S": str(description.job_stop_wait_s),
        **description.environment,
    }
    exports = " ".join(f"export {key}='{value}';" for key, value in variables.items())
    port = description.ports.gcs
    return {
        "cluster_name": description.name,
        "max_workers": workers,
        "provider": provider,
        "auth": {"ssh_user": description.ssh.user or "ubuntu"},
        "head_node_type": HEAD,
        "available_node_types": {
            HEAD: {"resources": {"GPU": 0}, "min_workers": 0, "max_workers": 0, "node_config": head},
            WORKER: {
                "resources": {"GPU": gpus_per_worker},
                "min_workers": workers,
                "max_workers": workers,
                "node_config": worker,
            },
        },
        "file_mounts": {TOKEN_PATH: description.token_file or f"~/.gemfleet/clusters/{description.name}/token"},
        "initialization_commands": [],
        "setup_commands": ["mkdir -p ~/.ray && chmod 700 ~/.ray", *description.setup],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [
            "ray stop",
            f"{exports} ulimit -n 65536; ray start --head --port={port} --dashboard-host=127.0.0.1 --num-gpus=0 "
            "--autoscaling-config=~/ray_bootstrap_config.yaml",
        ],
        "worker_start_ray_commands": [
            "ray stop",
            f"{exports} ulimit -n 65536; ray start --address=$RAY_HEAD_IP:{port} --num-gpus={gpus_per_worker}",
        ],
    }

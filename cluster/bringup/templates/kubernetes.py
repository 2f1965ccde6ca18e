"""KubeRay manifests: a cluster that stays, or one for a single run. Fields: KubeRay's API reference, ray.io/v1, 1.6.

The head's runs and checkpoints lie on a volume of their own. Its claim outlives the pod, the RayCluster and the RayJob.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemfleet.cluster.errors import ClusterError

from ..description import ClusterDescription

STATE_FOLDER, CONFIG_FOLDER = "/state", "/config"
AGENT_PORT, DASHBOARD_PORT, GCS_PORT, CLIENT_PORT = 52365, 8265, 6379, 10001
Manifest = dict[str, Any]


def ray_cluster(description: ClusterDescription, gpus: int, ray_version: str) -> list[Manifest]:
    """The volume's claim and a RayCluster with `gpus` GPUs in all. ClusterError when they do not fill whole pods."""
    cluster = {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": _metadata(description, description.name),
        "spec": _cluster_spec(description, gpus, ray_version, with_config=False),
    }
    return [_claim(description), cluster]


def ray_job(description: ClusterDescription, gpus: int, ray_version: str, config: str) -> list[Manifest]:
    """The volume's claim, the run's configuration, and a RayJob that trains it and then ends.

    `config`: the content of the configuration's file. Errors: see `ray_cluster`. The submitter asks for no resource of
    Ray, because the driver must stay on the head, where the volume is.
    """
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": _metadata(description, f"{description.name}-run"),
        "spec": {
            "entrypoint": f"gemfleet train {CONFIG_FOLDER}/run.yaml",
            "submissionMode": "K8sJobMode",
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "backoffLimit": 0,
            "rayClusterSpec": _cluster_spec(description, gpus, ray_version, with_config=True),
        },
    }
    configuration = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{description.name}-run", "namespace": description.kubernetes.namespace},
        "data": {"run.yaml": config},
    }
    return [_claim(description), configuration, job]


def _cluster_spec(description: ClusterDescription, gpus: int, ray_version: str, with_config: bool) -> Manifest:
    section = description.kubernetes
    pods, rest = divmod(gpus, section.gpus_per_pod)
    if rest or not pods:
        raise ClusterError(
            f"--gpus {gpus} is no multiple of kubernetes.gpus_per_pod, {section.gpus_per_pod}; change one of them"
        )
    return {
        "rayVersion": ray_version,
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": False,
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            "rayStartParams": {"dashboard-host": "0.0.0.0", "num-gpus": "0", "disable-usage-stats": "true"},
            "template": {"spec": _head_pod(description, with_config)},
        },
        "workerGroupSpecs": [
            {
                "groupName": "gpu",
                "replicas": pods,
                "minReplicas": pods,
                "maxReplicas": pods,
                "rayStartParams": {"num-gpus": str(section.gpus_per_pod)},
                "template": {"spec": _worker_pod(description)},
            }
        ],
    }


def _head_pod(description: ClusterDescription, with_config: bool) -> Manifest:
    section = description.kubernetes
    ports = {"gcs-server": GCS_PORT, "dashboard": DASHBOARD_PORT, "client": CLIENT_PORT}
    container = {
        **_container(description, "ray-head", section.head_cpus, section.head_memory, {}),
        "ports": [{"name": name, "containerPort": port} for name, port in ports.items()],
        **_probes(DASHBOARD_PORT, "/api/gcs_healthz"),
    }
    container["volumeMounts"] = [*container["volumeMounts"], {"name": "state", "mountPath": STATE_FOLDER}]
    volumes = [
        _shared_memory(section.shared_memory),
        {"name": "state", "persistentVolumeClaim": {"claimName": _claim_name(description)}},
    ]
    if with_config:
        container["volumeMounts"].append({"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True})
        volumes.append({"name": "config", "configMap": {"name": f"{description.name}-run"}})
    # The image's user must own a fresh volume to write to it; 100 is that user's group.
    return {"containers": [container], "volumes": volumes, "securityContext": {"fsGroup": 100}}


def _worker_pod(description: ClusterDescription) -> Manifest:
    section = description.kubernetes
    gpus = {section.gpu_resource: str(section.gpus_per_pod)}
    container = {
        **_container(description, "ray-worker", section.cpus_per_pod, section.memory_per_pod, gpus),
        **_probes(AGENT_PORT, "/api/local_raylet_healthz"),
        # NCCL's shared memory and InfiniBand need locked pages.
        "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}},
    }
    pod: Manifest = {
        "containers": [container],
        "volumes": [_shared_memory(section.shared_memory)],
        "tolerations": [{"key": section.gpu_resource, "operator": "Exists", "effect": "NoSchedule"}],
        "terminationGracePeriodSeconds": description.job_stop_wait_s,
    }
    return pod | ({"nodeSelector": dict(section.node_selector)} if section.node_selector else {})


def _container(description: ClusterDescription, name: str, cpus: int, memory: str, more: Mapping[str, str]) -> Manifest:
    """Requests equal limits: the kubelet neither throttles nor evicts a rank, for which all others would wait."""
    amounts = {"cpu": str(cpus), "memory": memory, **more}
    variables = {
        "GEMFLEET_HOME": STATE_FOLDER,
        "RAY_JOB_STOP_WAIT_TIME_S": str(description.job_stop_wait_s),
        **description.environment,
    }
    return {
        "name": name,
        "image": description.kubernetes.image,
        "env": [{"name": key, "value": value} for key, value in variables.items()],
        "resources": {"requests": dict(amounts), "limits": dict(amounts)},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }


def _probes(port: int, path: str) -> Manifest:
    """Ray answers these paths without a token. A start may take 10 minutes; later 2 minutes of silence are too long."""
    get = {"httpGet": {"port": port, "path": path}, "periodSeconds": 10, "timeoutSeconds": 5}
    return {
        "startupProbe": {**get, "failureThreshold": 60},
        "readinessProbe": {**get, "failureThreshold": 3},
        "livenessProbe": {**get, "failureThreshold": 12},
    }


def _shared_memory(size: str) -> Manifest:
    return {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": size}}


def _claim(description: ClusterDescription) -> Manifest:
    section = description.kubernetes
    storage = {"storageClassName": section.storage_class} if section.storage_class else {}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": _claim_name(description), "namespace": section.namespace},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": section.head_volume}},
            **storage,
        },
    }


def _claim_name(description: ClusterDescription) -> str:
    return f"{description.name}-state"


def _metadata(description: ClusterDescription, name: str) -> Manifest:
    """With a queue, Kueue holds the object back until all its pods fit: all start, or none."""
    queue = description.kubernetes.queue
    labels = {"kueue.x-k8s.io/queue-name": queue} if queue else {}
    metadata: Manifest = {"name": name, "namespace": description.kubernetes.namespace}
    return metadata | ({"labels": labels} if labels else {})

"""The part of KubeRay's ray.io/v1 and of Kubernetes' core types that our manifests use, as JSON schemas.

Written from KubeRay's API reference (https://docs.ray.io/en/latest/cluster/kubernetes/references/api.html, 1.6) and
Kubernetes' (v1.28); the definitions that KubeRay's chart carries are in no package of a registry. Unknown keys are
errors, so that a misspelt field fails here rather than being dropped by the API server.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def thing(required: str = "", **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": required.split(), "additionalProperties": False}


TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}
QUANTITY: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|[KMGT]i?)?$"}
NAME: Schema = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "maxLength": 253}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}


def many(items: Schema) -> Schema:
    return {"type": "array", "items": items}


METADATA = thing("name", name=NAME, namespace=NAME, labels=TEXTS)
AMOUNTS: Schema = {"type": "object", "additionalProperties": QUANTITY}
PROBE = thing(
    "httpGet",
    httpGet=thing("port", port=PORT, path={"type": "string", "pattern": "^/"}),
    periodSeconds=NUMBER,
    timeoutSeconds=NUMBER,
    failureThreshold=NUMBER,
)
CONTAINER = thing(
    "name image",
    name=NAME,
    image=TEXT,
    env=many(thing("name value", name=TEXT, value=TEXT)),
    resources=thing(requests=AMOUNTS, limits=AMOUNTS),
    ports=many(thing("containerPort", name={**NAME, "maxLength": 15}, containerPort=PORT)),
    volumeMounts=many(thing("name mountPath", name=NAME, mountPath=TEXT, readOnly=FLAG)),
    startupProbe=PROBE,
    readinessProbe=PROBE,
    livenessProbe=PROBE,
    securityContext=thing(capabilities=thing(add=many(TEXT))),
)
VOLUME = thing(
    "name",
    name=NAME,
    emptyDir=thing(medium={"enum": ["", "Memory"]}, sizeLimit=QUANTITY),
    persistentVolumeClaim=thing("claimName", claimName=NAME),
    configMap=thing("name", name=NAME),
)
TOLERATION = thing(key=TEXT, operator={"enum": ["Exists", "Equal"]}, effect={"enum": ["NoSchedule", "NoExecute"]})
POD = thing(
    "containers",
    containers={**many(CONTAINER), "minItems": 1},
    volumes=many(VOLUME),
    tolerations=many(TOLERATION),
    nodeSelector=TEXTS,
    terminationGracePeriodSeconds=NUMBER,
    securityContext=thing(fsGroup=NUMBER),
)
TEMPLATE = thing("spec", metadata=thing(labels=TEXTS), spec=POD)
HEAD = thing(
    "template rayStartParams",
    template=TEMPLATE,
    rayStartParams=TEXTS,
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
)
WORKERS = thing(
    "groupName template rayStartParams",
    groupName=TEXT,
    replicas=NUMBER,
    minReplicas=NUMBER,
    maxReplicas=NUMBER,
    rayStartParams=TEXTS,
    template=TEMPLATE,
)
CLUSTER = thing(
    "headGroupSpec",
    rayVersion=TEXT,
    authOptions=thing("mode", mode={"enum": ["disabled", "token"]}, secretName=TEXT),
    enableInTreeAutoscaling=FLAG,
    headGroupSpec=HEAD,
    workerGroupSpecs=many(WORKERS),
)
JOB = thing(
    "entrypoint rayClusterSpec",
    entrypoint=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=NUMBER,
    backoffLimit=NUMBER,
    rayClusterSpec=CLUSTER,
)
CLAIM = thing(
    "accessModes resources",
    accessModes=many({"enum": ["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"]}),
    resources=thing("requests", requests=thing("storage", storage=QUANTITY)),
    storageClassName=TEXT,
)


def kind(version: str, name: str, **properties: Schema) -> Schema:
    shape = thing("apiVersion kind metadata", apiVersion={"const": version}, kind={"const": name}, metadata=METADATA)
    return {**shape, "properties": {**shape["properties"], **properties}}


SCHEMAS = {
    "RayCluster": kind("ray.io/v1", "RayCluster", spec=CLUSTER),
    "RayJob": kind("ray.io/v1", "RayJob", spec=JOB),
    "PersistentVolumeClaim": kind("v1", "PersistentVolumeClaim", spec=CLAIM),
    "ConfigMap": kind("v1", "ConfigMap", data=TEXTS),
}

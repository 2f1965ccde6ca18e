"""The manifests against KubeRay's own definitions, for whoever has them: make check-kuberay CRDS=folder"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from gemfleet.cluster.bringup.description import ClusterDescription
from gemfleet.cluster.bringup.templates.render import render

FOLDER = os.environ.get("GEMFLEET_KUBERAY_CRDS")
pytestmark = pytest.mark.skipif(not FOLDER, reason="needs KubeRay's CRDs (make check-kuberay CRDS=folder)")
RUN = "train:\n  model: demo\n  data: {train: demo}\n"


@cache
def schemas() -> dict[str, Any]:
    """By kind, the schema of version v1, in which unknown fields are errors: the API server would drop them."""
    found = {}
    for path in Path(FOLDER or "").glob("*.yaml"):
        definition = yaml.load(path.read_text(), yaml.CSafeLoader)  # megabytes
        names = definition["spec"]["names"]
        versions = {version["name"]: version for version in definition["spec"]["versions"]}
        found[names["kind"]] = _strict(versions["v1"]["schema"]["openAPIV3Schema"])
    return found


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {name: _strict(value) for name, value in schema.items()}
    free = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("type") == "object" and "properties" in schema and not free:
        strict["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        strict.pop("anyOf", None)
        strict["type"] = ["integer", "string"]
    return strict


@pytest.mark.parametrize(("template", "kind"), [("ray-cluster", "RayCluster"), ("ray-job", "RayJob")])
@pytest.mark.parametrize("section", [{}, {"queue": "gpus", "storage_class": "fast", "node_selector": {"gpu": "h100"}}])
def test_every_field_is_known_and_valid(template: str, kind: str, section: dict[str, Any]) -> None:
    description = ClusterDescription.model_validate({"name": "lab", "kubernetes": section})
    documents = yaml.safe_load_all(render(template, description, 16, RUN))
    (manifest,) = (document for document in documents if document["kind"] == kind)
    schema = schemas()[kind]
    jsonschema.validate({name: manifest[name] for name in ("apiVersion", "kind", "spec")}, schema)
    cluster = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    with pytest.raises(jsonschema.ValidationError, match="imagee"):
        jsonschema.validate({"spec": manifest["spec"]}, schema)

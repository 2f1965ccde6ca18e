"""Completes the API's OpenAPI description: adds problem documents and the answers about tokens."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from .gate import OPEN_PATHS
from .problems import responses
from .schemas import Problem
from .settings import ApiSettings

TOKENS = "read.token or admin.token of $GEMFLEET_HOME/api; needed where the API listens beyond this machine"
METHODS = ("get", "post", "patch")


def install(app: FastAPI, settings: ApiSettings) -> None:
    """Make `app.openapi()` describe every possible answer."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            app.openapi_schema = _completed(schema, settings)
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]


def _completed(schema: dict[str, Any], settings: ApiSettings) -> dict[str, Any]:
    models = schema.setdefault("components", {}).setdefault("schemas", {})
    described = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    models.update(described.pop("$defs", {}))
    models["Problem"] = described
    for unused in ("HTTPValidationError", "ValidationError"):
        models.pop(unused, None)
    always = (421, 413, 401) if settings.tokens is not None else (421, 413)
    for name, path in schema["paths"].items():
        for method in METHODS:
            operation = path.get(method)
            if operation is None:
                continue
            if settings.tokens is None or name in OPEN_PATHS:
                operation.pop("security", None)
            for status, answer in responses(*always, *((403,) if method != "get" else ())).items():
                operation["responses"].setdefault(str(status), answer)
    return schema

"""Makes each answer from status 400 on a problem document (RFC 9457)."""

from __future__ import annotations

import http
import json
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from gemfleet.cluster.errors import ClusterError, RunConflict, UnknownRun
from gemfleet.train.errors import UserError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from .schemas import Problem, ProblemDetail

log = logging.getLogger("gemfleet.api")
MEDIA_TYPE = "application/problem+json"


class ProblemResponse(JSONResponse):
    """Escapes all but ASCII, because it may quote bytes of a request that are no text."""

    media_type = MEDIA_TYPE

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode()


class ApiError(Exception):
    """An error that becomes an answer: its status, a sentence, and the fields that the sentence is about."""

    def __init__(
        self,
        status: int,
        detail: str,
        errors: list[ProblemDetail] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.errors, self.headers = status, detail, errors, headers


def problem(
    status: int,
    detail: str,
    instance: str,
    errors: list[ProblemDetail] | None = None,
    headers: Mapping[str, str] | None = None,
) -> ProblemResponse:
    """The answer for a problem. instance: the requested path"""
    body = Problem(title=http.HTTPStatus(status).phrase, status=status, detail=detail, instance=instance, errors=errors)
    return ProblemResponse(body.model_dump(exclude_none=True), status, dict(headers or {}))


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """A route's problem answers, for its documentation."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": http.HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in statuses
    }


def install(app: FastAPI) -> None:
    """Make `app` answer every error with a problem document."""

    async def api_error(request: Request, error: Exception) -> ProblemResponse:
        assert isinstance(error, ApiError)
        return problem(error.status, error.detail, request.url.path, error.errors, error.headers)

    async def http_error(request: Request, error: Exception) -> ProblemResponse:
        assert isinstance(error, HTTPException)
        headers = {"Allow": allowed_methods(app, request)} if error.status_code == 405 else error.headers
        return problem(error.status_code, str(error.detail), request.url.path, headers=headers)

    async def validation(request: Request, error: Exception) -> ProblemResponse:
        assert isinstance(error, RequestValidationError)
        found = [
            ProblemDetail(field=".".join(str(part) for part in entry["loc"]), detail=entry["msg"])
            for entry in error.errors()
        ]
        return problem(422, "the request has values that are not accepted", request.url.path, found)

    async def known(request: Request, error: Exception) -> ProblemResponse:
        status = {UnknownRun: 404, RunConflict: 409, UserError: 422}.get(type(error), 503)
        return problem(status, str(error), request.url.path)

    async def unexpected(request: Request, error: Exception) -> ProblemResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem(500, "something went wrong in the API; its log says what", request.url.path)

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(ClusterError, known)
    app.add_exception_handler(UserError, known)
    app.add_exception_handler(Exception, unexpected)


def allowed_methods(app: FastAPI, request: Request) -> str:
    """All methods of a path. The framework names those of one route only."""
    found: set[str] = set()
    for method in ("GET", "PATCH", "POST"):
        scope = {**request.scope, "method": method}
        found |= {method for route in app.router.routes if route.matches(scope)[0] is Match.FULL}
    return ", ".join(sorted(found))

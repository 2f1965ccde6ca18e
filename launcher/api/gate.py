"""Checks each request before a route sees it: the host's name, the token, the origin and the size."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .connections import admit
from .problems import problem
from .settings import ApiSettings, Tokens
from .tokens import same_secret

BODY_SECONDS = 30.0
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
OPEN_PATHS = frozenset({"/", "/healthz", "/readyz", "/api/v1/healthz", "/api/v1/readyz"})
OPEN_FOLDER = "/assets/"  # the dashboard's own files, without data of runs
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        b"frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    ),
)


class Refused(Exception):  # noqa: N818
    """A request that the gate refuses, and why."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers


class Gate:
    """ASGI middleware around the whole application. It answers the requests that it refuses."""

    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here speaks WebSocket
            await send({"type": "websocket.close", "code": 1008})
            return
        send = _with_headers(send)
        headers = Headers(scope=scope)
        try:
            check_host(headers, self._settings.hosts)
            check_origin(scope["method"], headers, self._settings.hosts)
            if self._settings.tokens is None:
                admit(scope)
            elif not _is_open(scope):
                check_token(scope["method"], headers, self._settings.tokens)
                admit(scope)
            receive = _limited(receive, headers, self._settings.body_limit_bytes)
            await self._app(scope, receive, send)
        except Refused as refused:
            answer = problem(refused.status, refused.detail, scope["path"], headers=refused.headers)
            await answer(scope, receive, send)


def check_host(headers: Headers, allowed: frozenset[str]) -> None:
    """Refuse unknown names in the Host header: another site's name can be made to point here (DNS rebinding)."""
    given = headers.getlist("host")
    if len(given) != 1 or host_name(given[0]) not in allowed:
        shown = ", ".join(given)[:100]
        raise Refused(
            421, f"the Host header {shown!r} is not a name of this API; `gemfleet serve --allow-host` adds one"
        )


def check_origin(method: str, headers: Headers, allowed: frozenset[str]) -> None:
    """Refuse requests that change something and come from another site's page. A browser names the site."""
    origin = headers.get("origin")
    if method in SAFE_METHODS or origin is None:
        return
    try:
        name = urlsplit(origin).netloc
    except ValueError:
        name = ""
    if name.lower() != headers.get("host", "").lower() or host_name(name) not in allowed:
        raise Refused(403, "a page of another site may not change anything here")


def check_token(method: str, headers: Headers, tokens: Tokens) -> None:
    """Refuse a request without the right token. Reading needs either token, all else the admin one."""
    kind, _, given = headers.get("authorization", "").partition(" ")
    admin = same_secret(given, tokens.admin)  # always compares both, so that the time tells nothing
    reader = same_secret(given, tokens.read)
    if kind.lower() != "bearer" or not (admin or reader):
        challenge = {"WWW-Authenticate": 'Bearer realm="gemfleet"'}
        raise Refused(401, "a token is needed: send `Authorization: Bearer` with one of $GEMFLEET_HOME/api", challenge)
    if method not in SAFE_METHODS and not admin:
        raise Refused(403, "this token may only read; use the one in $GEMFLEET_HOME/api/admin.token")


def host_name(host: str) -> str:
    """The name in a host: `Name:8266` → `name`, `[::1]:8266` → `::1`. Empty for what is no host."""
    try:
        return (urlsplit(f"//{host}").hostname or "") if not set(host) & set("/?#@\\") else ""
    except ValueError:
        return ""


def _is_open(scope: Scope) -> bool:
    path = scope["path"]
    return scope["method"] in SAFE_METHODS and (path in OPEN_PATHS or path.startswith(OPEN_FOLDER))


def _limited(receive: Receive, headers: Headers, limit: int) -> Receive:
    """Refuse a body over `limit` bytes, by its announced length or while it comes, and one slower than BODY_SECONDS."""
    announced = headers.get("content-length", "0")
    if not announced.isdigit() or int(announced) > limit:
        raise Refused(413, f"the body may have at most {limit} bytes")
    seen, whole = 0, False
    deadline = asyncio.get_running_loop().time() + BODY_SECONDS

    async def counted() -> Message:
        nonlocal seen, whole
        try:
            async with asyncio.timeout_at(None if whole else deadline):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, f"the body did not come within {BODY_SECONDS:g} s") from None
        whole = whole or not message.get("more_body", False)
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            if seen > limit:  # raised inside the application, which answers this class of error only
                raise HTTPException(413, f"the body may have at most {limit} bytes")
        return message

    return counted


def _with_headers(send: Send) -> Send:
    async def extended(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *HEADERS]}
        await send(message)

    return extended

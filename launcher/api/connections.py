"""Closes connections that make no progress, and bounds their number, so that they keep nobody else out."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0  # for a request's headers, from the connection's start or from the answer before
STALL_SECONDS = 30.0  # for a client to read what was sent
MOST_STRANGERS = 256
RESERVED_FILES = 128  # descriptors for the registry, for files to send and for the rest of the process
GONE_SECONDS = 60  # for a machine to acknowledge what was sent
ADMITTED = "gemfleet.admitted"


class Strangers:
    """Connections without an admitted request, the oldest first. One too many closes the oldest."""

    def __init__(self) -> None:
        self._known: dict[GuardedProtocol, None] = {}
        self._most_files = max(MOST_STRANGERS // 2, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - RESERVED_FILES)

    def add(self, connection: GuardedProtocol, connections: int) -> None:
        """connections: how many the server has, with this one"""
        self._known[connection] = None
        if len(self._known) > MOST_STRANGERS or connections > self._most_files:
            oldest = next(iter(self._known))
            self.remove(oldest)
            oldest.abort()

    def remove(self, connection: GuardedProtocol) -> None:
        self._known.pop(connection, None)


class GuardedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol. It waits for requests and for readers no longer than the limits above."""

    def __init__(self, strangers: Strangers, **options: Any) -> None:
        super().__init__(**options)
        self._strangers = strangers
        self._patience: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def abort(self) -> None:
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        self._strangers.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._request_begun()

    def on_response_complete(self) -> None:
        before = self.cycle
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self.cycle is before:
            self._await_request()
        else:  # the client had sent the next request already
            self._request_begun()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(STALL_SECONDS, self.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()

    def _await_request(self) -> None:
        self._cancel()
        self._patience = self.loop.call_later(HEADER_SECONDS, self.abort)
        self._strangers.add(self, len(self.connections))

    def _request_begun(self) -> None:
        """The headers of a request have come. The gate decides whether it is admitted."""
        self._cancel()
        self.cycle.scope[ADMITTED] = lambda: self._strangers.remove(self)  # type: ignore[literal-required]

    def _cancel(self) -> None:
        for timer in (self._patience, self._stalled):
            if timer is not None:
                timer.cancel()


def admit(scope: MutableMapping[str, Any]) -> None:
    """Admit a request, whose sender is known or need not be: its connection is no stranger any more."""
    scope.get(ADMITTED, lambda: None)()


def give_up_lost_peers(listener: socket.socket) -> None:
    """Make the kernel end connections to machines that have vanished. Connections inherit this from the listener."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": GONE_SECONDS * 1000}
    for name, value in options.items():
        with suppress(AttributeError, OSError):  # not every system has all of them
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

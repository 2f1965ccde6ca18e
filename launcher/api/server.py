"""Binds the API's socket and makes its server."""

from __future__ import annotations

import logging
import socket
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI
from gemfleet.cluster.network import family_of
from gemfleet.train.errors import UserError

from .connections import GuardedProtocol, Strangers, give_up_lost_peers
from .settings import ApiSettings

STOP_SECONDS = 3
BACKLOG = 1024
ACCEPTED_AT_ONCE = 64  # connections before the first is looked at; each takes a descriptor


class Server(uvicorn.Server):
    """uvicorn's server. When it begins to stop, it ends all event streams, which would otherwise keep it waiting."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(BACKLOG)  # asyncio has shortened it to ACCEPTED_AT_ONCE

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app: Any = self.config.app
        app.state.services.feed.close()
        await super().shutdown(sockets)


def bind(settings: ApiSettings) -> socket.socket:
    """Listen at the settings' address; port 0 is any free one. Raises UserError if the address is not available."""
    # asyncio sends small answers without a wait of 40 ms (TCP_NODELAY) only on sockets that name their protocol.
    listener = socket.socket(family_of(settings.host), socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    give_up_lost_peers(listener)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)  # from now on, clients that come before the server is ready wait for it
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise UserError(f"--host {settings.host} --port {settings.port}: {reason}; choose another port") from None
    return listener


def make_server(app: FastAPI) -> Server:
    """A server for `app`. `server.run(sockets=[bind(settings)])` serves until it is told to stop."""
    config = uvicorn.Config(
        app,
        http=partial(GuardedProtocol, Strangers()),  # type: ignore[arg-type]
        ws="none",
        backlog=ACCEPTED_AT_ONCE,
        log_level=logging.WARNING,
        access_log=False,
        timeout_graceful_shutdown=STOP_SECONDS,
        server_header=False,
        h11_max_incomplete_event_size=32 * 1024,
    )
    return Server(config)

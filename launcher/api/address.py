"""Remembers on the head's disk where the API listens, so that a restarted one has the same address."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path

from gemfleet.cluster.durable import write_durably
from gemfleet.train.errors import UserError

from .server import bind
from .settings import ApiSettings


def remembered_port(home: Path, host: str) -> int | None:
    """The port of the last API at this host. None if there was none."""
    try:
        content = json.loads(_path(home).read_text())
        return int(content["port"]) if content["host"] == host else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def bind_again(settings: ApiSettings) -> tuple[socket.socket, ApiSettings]:
    """Listen at the remembered port, else at the settings' port, else at any. Returns the socket and its settings."""
    ports = dict.fromkeys([remembered_port(settings.home, settings.host) or settings.port, settings.port, 0])
    for port in ports:
        wanted = replace(settings, port=port)
        try:
            listener = bind(wanted)
        except UserError:
            if port == 0:
                raise
            continue
        actual = replace(settings, port=listener.getsockname()[1])
        remember(actual)
        return listener, actual
    raise AssertionError("port 0 either binds or raises")


def remember(settings: ApiSettings) -> None:
    _path(settings.home).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_durably(_path(settings.home), json.dumps({"host": settings.host, "port": settings.port}).encode())


def _path(home: Path) -> Path:
    return home / "api" / "address.json"

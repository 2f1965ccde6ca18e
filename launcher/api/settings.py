"""The settings of an API: where it listens, who may use it, and how much it accepts."""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

from gemfleet.cluster.bringup.on_node import MARKER

from .allowed import Allowed

DEFAULT_PORT = 8266
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Tokens:
    """The tokens for `Authorization: Bearer`. With `admin` a client may do everything, with `read` only look."""

    read: str
    admin: str


@dataclass(frozen=True)
class ApiSettings:
    """The settings of one API.

    tokens: None where the API asks for none, which needs a loopback address (see `needs_tokens`)
    allowed_hosts: names that a request's Host header may carry, beside the loopback ones
    allowed: what a submitted configuration may name
    stream_seconds: after this time an event stream ends, and its reader goes on with Last-Event-ID
    """

    home: Path
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    tokens: Tokens | None = None
    allowed_hosts: frozenset[str] = frozenset()
    allowed: Allowed = field(default_factory=Allowed)
    body_limit_bytes: int = 1 << 20
    stream_seconds: float = 3600.0
    poll_seconds: float = 0.2
    hosts: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        if self.tokens is None and not is_loopback(self.host):
            raise ValueError(f"host {self.host!r} can be reached from other machines and needs tokens; pass `tokens`")
        names = {self.host, socket.gethostname()} if self.tokens is not None else set()
        object.__setattr__(self, "hosts", LOOPBACK_NAMES | {name.lower() for name in names | self.allowed_hosts})

    @property
    def registry_path(self) -> Path:
        return self.home / "gemfleet.db"

    def run_folder(self, run_id: str) -> Path:
        """The run's folder. run_id: of a run in the registry, never a text of a request"""
        return self.home / "runs" / run_id

    @property
    def url(self) -> str:
        return base_url(self.host, self.port)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`. Names other than localhost do not count: they may point anywhere."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def needs_tokens(host: str) -> bool:
    """Whether an API at `host` asks for a token: if other machines reach it, or if the cluster itself has a token.

    On such a cluster several people may have accounts on the head, and a request to the API can start programs.
    """
    return not is_loopback(host) or MARKER in os.environ


def base_url(host: str, port: int) -> str:
    shown = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"

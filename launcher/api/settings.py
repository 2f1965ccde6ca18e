"""Where the API listens, who may use it, and how much it accepts."""

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
    """What `Authorization: Bearer` must carry: `admin` may do everything, `read` may only look."""

    read: str
    admin: str


@dataclass(frozen=True)
class ApiSettings:
    """The configuration of one API.

    tokens: None where none is asked for (`needs_tokens`), which only a loopback address allows
    allowed_hosts: names a request's Host header may carry, beside the loopback ones
    allowed: what a submitted configuration may name
    stream_seconds: an event stream is ended after so long; its reader goes on with Last-Event-ID
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
        """`run_id` must be one that the registry knows."""
        return self.home / "runs" / run_id

    @property
    def url(self) -> str:
        return base_url(self.host, self.port)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`. A name other than localhost may point anywhere, so it is none."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def needs_tokens(host: str) -> bool:
    """Whether an API at `host` asks for a token: where other machines reach it, and on a cluster that has one itself.

    There the accounts of the head may be several people's, and a request to the API starts programs.
    """
    return not is_loopback(host) or MARKER in os.environ


def base_url(host: str, port: int) -> str:
    shown = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"

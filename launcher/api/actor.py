"""Runs the API inside a Ray cluster, as one detached actor for each home. The first run starts it on the head.

It outlives runs, and Ray restarts it at the same address when it dies. No run depends on it.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
from gemfleet.cluster.head import actor_on_head, on_head
from gemfleet.cluster.inventory import Node, list_nodes
from gemfleet.cluster.private import keep_private
from gemfleet.launcher.config.schema import ApiConfig
from packaging.version import Version

ANSWER_SECONDS = 30.0
START_SECONDS = 15.0


@dataclass(frozen=True)
class ApiFacts:
    """The address, the version and the process id of an API."""

    url: str
    version: str
    pid: int


class ThisCluster:
    """Sees the nodes of the cluster to which this process belongs."""

    def nodes(self) -> list[Node] | None:
        return list_nodes()


class ApiActor:
    """Serves in a thread, so that the actor can answer calls meanwhile."""

    def __init__(self, home: str, config: ApiConfig) -> None:
        # Only the actor's process needs the web framework, never the driver that starts it.
        from .address import bind_again
        from .allowed import Allowed
        from .app import create_app
        from .server import make_server
        from .settings import ApiSettings, needs_tokens
        from .submissions import ProcessSubmitter
        from .tokens import load_tokens

        keep_private()
        tokens = load_tokens(Path(home)) if needs_tokens(config.host) else None
        settings = ApiSettings(
            home=Path(home),
            host=config.host,
            port=config.port,
            tokens=tokens,
            allowed_hosts=frozenset(config.allowed_hosts),
            allowed=Allowed(
                tuple(map(Path, config.data_roots)),
                config.allowed_sources,
                config.allowed_deliveries,
                config.allowed_reports,
            ),
        )
        listener, settings = bind_again(settings)
        submitter = ProcessSubmitter(settings.home, ray_address=ray.get_runtime_context().gcs_address)
        self._server = make_server(create_app(settings, ThisCluster(), submitter))
        self._facts = ApiFacts(settings.url, version("gemfleet"), os.getpid())
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._server.started and self._thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        if not self._server.started:
            raise RuntimeError(f"the API did not begin to serve at {settings.url}")

    def facts(self) -> ApiFacts:
        return self._facts

    def connections(self) -> int:
        """How many connections are open. Somebody watches if there is one."""
        return len(self._server.server_state.connections)

    def stop(self) -> None:
        """Close all streams and the socket, so that a newer API can take the address."""
        self._server.should_exit = True
        self._thread.join(START_SECONDS)


def start_api(home: Path, config: ApiConfig) -> Any:
    """The API's actor for `home`, started if there is none. Returns at once; `api_facts` waits until it serves."""
    options = {**on_head(actor_name(home), threads=4), "lifetime": "detached", "get_if_exists": True}
    return ray.remote(ApiActor).options(**options, max_task_retries=-1).remote(str(home), config)


def api_facts(home: Path, config: ApiConfig, actor: Any, ours: str | None = None) -> ApiFacts:
    """Wait until the API serves, and return its facts. Replaces an API of an older gemfleet."""
    facts: ApiFacts = ray.get(actor.facts.remote(), timeout=ANSWER_SECONDS)
    if not is_older(facts.version, ours or version("gemfleet")):
        return facts
    ray.get(actor.stop.remote(), timeout=ANSWER_SECONDS)
    ray.kill(actor, no_restart=True)
    wait_until_gone(actor_name(home))
    newer = start_api(home, config)
    replaced: ApiFacts = ray.get(newer.facts.remote(), timeout=ANSWER_SECONDS)
    return replaced


def actor_name(home: Path) -> str:
    return f"gemfleet-api-{hashlib.sha256(str(home).encode()).hexdigest()[:12]}"


def is_older(theirs: str, ours: str) -> bool:
    return Version(theirs) < Version(ours)


def wait_until_gone(name: str) -> None:
    """Wait until the name of an actor that was killed is free. Raises TimeoutError."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < deadline:
        try:
            actor_on_head(name)
        except ValueError:
            return
        time.sleep(0.1)
    raise TimeoutError(f"{name} did not end within {ANSWER_SECONDS:g} s")

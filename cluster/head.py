"""Actors that live on the head node: found by name from every node, pinned where the disk of record is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import ray
import ray.exceptions

from .errors import ClusterError, StoreError

NAMESPACE = "gemfleet"
HEAD_RESOURCE = "node:__internal_head__"
RETRY_SECONDS = 60.0
NAME_SECONDS = 15.0
Value = TypeVar("Value")


def start_on_head(actor_class: Any, name: str, *arguments: Any, threads: int = 8) -> HeadActor:
    """Create `actor_class` on the head under `name`; it is restarted when it dies.

    It ends with the driver's job, or when the object returned here (not a copy of it) is gone. A tiny share of the
    head's own resource pins it there without taking a CPU from training. ClusterError when the name is in use.
    """
    options = {
        "name": name,
        "namespace": NAMESPACE,
        "num_cpus": 0,
        "resources": {HEAD_RESOURCE: 0.001},
        "max_restarts": -1,
        "max_task_retries": 0,
        "max_concurrency": threads,
    }
    deadline = time.monotonic() + NAME_SECONDS
    while True:
        try:
            return HeadActor(name, ray.remote(actor_class).options(**options).remote(*arguments))
        except ValueError as error:
            if time.monotonic() > deadline:
                message = f"{name} is running already, for another driver of this run; end that one first"
                raise ClusterError(message) from error
            time.sleep(0.5)  # of a driver that was killed a moment ago, Ray is still ending the actors


class HeadActor:
    """A head actor by its name: picklable, and looked up again after the actor was restarted.

    `call` waits out a restart for `RETRY_SECONDS`. It may therefore run a method twice: those called here allow it.
    """

    def __init__(self, name: str, original: Any = None) -> None:
        """`original`: the handle that Ray gave its creator. Ray ends an actor when that is gone; names do not count."""
        self.name = name
        self._original = original
        self._handle: Any = original

    def __reduce__(self) -> tuple[type[HeadActor], tuple[str]]:
        return HeadActor, (self.name,)

    @property
    def handle(self) -> Any:
        if self._handle is None:
            self._handle = ray.get_actor(self.name, namespace=NAMESPACE)
        return self._handle

    def call(self, method: str, *arguments: Any) -> Any:
        """The method's result; its own errors are raised as they are, StoreError when the actor stays unreachable."""
        return self._retry(method, lambda: ray.get(getattr(self.handle, method).remote(*arguments)))

    def _retry(self, method: str, attempt: Callable[[], Value]) -> Value:
        deadline, pause = time.monotonic() + RETRY_SECONDS, 0.1
        while True:
            try:
                return attempt()
            except ray.exceptions.RayTaskError as error:
                cause = error.cause
                raise cause if isinstance(cause, Exception) else error from None
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError, ValueError) as error:
                self._handle = None
                if time.monotonic() > deadline:
                    message = f"{self.name} on the head did not answer {method} for {RETRY_SECONDS:g} s"
                    raise StoreError(message) from error
                time.sleep(pause)
                pause = min(2 * pause, 2.0)
